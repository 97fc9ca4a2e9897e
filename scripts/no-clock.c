/*
 * For scripts/bench: lets a time daemon that insists on the right to set the clock run without it. Preloaded, it answers
 * every call that would set or steer the clock with success and does nothing.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>

static int pretend(struct timex *state)
{
	memset(state, 0, sizeof(*state));
	state->tick = 10000;
	return TIME_OK;
}

int adjtimex(struct timex *state)
{
	return pretend(state);
}

int ntp_adjtime(struct timex *state)
{
	return pretend(state);
}

int clock_adjtime(clockid_t clock, struct timex *state)
{
	(void)clock;
	return pretend(state);
}

int clock_settime(clockid_t clock, const struct timespec *time)
{
	(void)clock;
	(void)time;
	return 0;
}

int settimeofday(const struct timeval *time, const struct timezone *zone)
{
	(void)time;
	(void)zone;
	return 0;
}
