/*
 * LD_PRELOAD: gives one process a wall clock of its own, which it may step and steer; the machine's is never touched.
 *
 * TIMEBALL_TEST_CLOCK holds `AHEAD PPM LOG`: by how many seconds that clock is ahead of the machine's at the start (negative:
 * behind), by how many parts per million its oscillator is fast, and a file to which a line is added for each thing done to
 * it: `step SECONDS`, `frequency PPM`, `status STA_BITS MAXERROR_US`. The kernel's stamps on packets, which are the machine's
 * time, are refused, so that the process reads its own clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static double oscillator_ppm, frequency_ppm;
static char log_path[4096];
/* Seconds of the own clock minus the machine's at `since`, which is monotonic. */
static double ahead, since;
static int status = STA_UNSYNC;

static double seconds(clockid_t clock)
{
	struct timespec now;

	syscall(SYS_clock_gettime, clock, &now);
	return (double)now.tv_sec + now.tv_nsec / 1e9;
}

static void start(void)
{
	static int started;
	const char *setting = getenv("TIMEBALL_TEST_CLOCK");

	if (started)
		return;
	started = 1;
	if (setting == NULL || sscanf(setting, "%lf %lf %4095s", &ahead, &oscillator_ppm, log_path) != 3)
		abort();
	since = seconds(CLOCK_MONOTONIC);
}

/* How far it is ahead now. */
static double advance(void)
{
	double now = seconds(CLOCK_MONOTONIC);

	start();
	ahead += (now - since) * (oscillator_ppm + frequency_ppm) / 1e6;
	since = now;
	return ahead;
}

static void tell(const char *format, ...)
{
	FILE *file = fopen(log_path, "ae");
	va_list arguments;

	if (file == NULL)
		return;
	va_start(arguments, format);
	vfprintf(file, format, arguments);
	va_end(arguments);
	fclose(file);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	long long nanoseconds;
	int result = (int)syscall(SYS_clock_gettime, clock, time);

	if (result != 0 || (clock != CLOCK_REALTIME && clock != CLOCK_TAI))
		return result;
	pthread_mutex_lock(&lock);
	nanoseconds = time->tv_sec * 1000000000LL + time->tv_nsec + (long long)(advance() * 1e9);
	pthread_mutex_unlock(&lock);
	time->tv_sec = nanoseconds / 1000000000LL;
	time->tv_nsec = nanoseconds % 1000000000LL;
	return 0;
}

static int adjust(clockid_t clock, struct timex *timex)
{
	unsigned int modes = timex->modes;
	double by;

	if (clock != CLOCK_REALTIME) {
		errno = EINVAL;
		return -1;
	}
	pthread_mutex_lock(&lock);
	advance();
	if (modes & ADJ_SETOFFSET) {
		by = timex->time.tv_sec + timex->time.tv_usec / (modes & ADJ_NANO ? 1e9 : 1e6);
		ahead += by;
		tell("step %.9f\n", by);
	}
	if (modes & ADJ_FREQUENCY) {
		frequency_ppm = timex->freq / 65536.0;
		tell("frequency %.6f\n", frequency_ppm);
	}
	if (modes & ADJ_STATUS) {
		status = timex->status;
		tell("status %#x %ld\n", status, timex->maxerror);
	}
	memset(timex, 0, sizeof *timex);
	timex->freq = (long)(frequency_ppm * 65536.0);
	timex->status = status;
	timex->tick = 10000;
	pthread_mutex_unlock(&lock);
	return status & STA_UNSYNC ? TIME_ERROR : TIME_OK;
}

int clock_adjtime(clockid_t clock, struct timex *timex)
{
	return adjust(clock, timex);
}

int adjtimex(struct timex *timex)
{
	return adjust(CLOCK_REALTIME, timex);
}

int ntp_adjtime(struct timex *timex)
{
	return adjust(CLOCK_REALTIME, timex);
}

int clock_settime(clockid_t clock, const struct timespec *time)
{
	(void)clock;
	(void)time;
	errno = EPERM;
	return -1;
}

int settimeofday(const struct timeval *time, const struct timezone *zone)
{
	(void)time;
	(void)zone;
	errno = EPERM;
	return -1;
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	if (level == SOL_SOCKET && (option == SO_TIMESTAMPING || option == SO_TIMESTAMPNS)) {
		errno = ENOPROTOOPT;
		return -1;
	}
	return (int)syscall(SYS_setsockopt, fd, level, option, value, length);
}
