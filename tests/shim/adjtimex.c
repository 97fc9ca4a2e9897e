/*
 * LD_PRELOAD: answers for the kernel's clock state, so that a test can declare it synchronised or not.
 *
 * The file named by TIMEBALL_TEST_ADJTIMEX holds `state maxerror_us tai status` (numbers as C has them; state is
 * what adjtimex returns, 0 = TIME_OK to 5 = TIME_ERROR; status are STA_* bits, 0x40 = STA_UNSYNC). It is read anew
 * at every call: write a new one and rename it into place. Without the variable the kernel is asked.
 *
 * Asking to change anything is refused with EPERM either way: no test may touch the clock.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

static int answer(clockid_t clock, struct timex *timex)
{
	const char *path = getenv("TIMEBALL_TEST_ADJTIMEX");
	long maximum_error;
	int state, tai, status, fields;
	FILE *file;

	if (timex->modes != 0) {
		errno = EPERM;
		return -1;
	}
	if (path == NULL || clock != CLOCK_REALTIME)
		return (int)syscall(SYS_clock_adjtime, clock, timex);

	file = fopen(path, "re");
	if (file == NULL)
		return -1;
	fields = fscanf(file, "%i %li %i %i", &state, &maximum_error, &tai, &status);
	fclose(file);
	if (fields != 4) {
		errno = EIO;
		return -1;
	}
	memset(timex, 0, sizeof *timex);
	timex->maxerror = maximum_error;
	timex->esterror = maximum_error;
	timex->tai = tai;
	timex->status = status;
	timex->constant = 2;
	timex->precision = 1;
	timex->tick = 10000;
	clock_gettime(CLOCK_REALTIME, (struct timespec *)&timex->time);
	if (!(status & STA_NANO))
		timex->time.tv_usec /= 1000;
	return state;
}

int adjtimex(struct timex *timex)
{
	return answer(CLOCK_REALTIME, timex);
}

int ntp_adjtime(struct timex *timex)
{
	return answer(CLOCK_REALTIME, timex);
}

int clock_adjtime(clockid_t clock, struct timex *timex)
{
	return answer(clock, timex);
}
