/*
 * LD_PRELOAD: a kernel (or time simulator) that knows less than ours.
 *
 * TIMEBALL_TEST_REFUSE names what it refuses, any of: socket-flags timestamping timestampns mmsg tai.
 * TIMEBALL_TEST_SEND_ERRORS is a list of error numbers: each of the first calls to send fails with the next one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int refuses(const char *what)
{
	const char *list = getenv("TIMEBALL_TEST_REFUSE");
	size_t length = strlen(what);

	for (; list != NULL && *list != '\0'; list += strcspn(list, " "), list += strspn(list, " "))
		if (strcspn(list, " ") == length && strncmp(list, what, length) == 0)
			return 1;
	return 0;
}

static int failed(int error)
{
	errno = error;
	return -1;
}

static int next_send_error(void)
{
	static const char *rest;
	static int started;
	char *end;
	long error;

	if (!started) {
		rest = getenv("TIMEBALL_TEST_SEND_ERRORS");
		started = 1;
	}
	if (rest == NULL)
		return 0;
	error = strtol(rest, &end, 10);
	rest = end;
	return (int)error;
}

int socket(int domain, int type, int protocol)
{
	if ((type & (SOCK_NONBLOCK | SOCK_CLOEXEC)) && refuses("socket-flags"))
		return failed(EINVAL);
	return (int)syscall(SYS_socket, domain, type, protocol);
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	if (level == SOL_SOCKET && option == SO_TIMESTAMPING && refuses("timestamping"))
		return failed(ENOPROTOOPT);
	if (level == SOL_SOCKET && option == SO_TIMESTAMPNS && refuses("timestampns"))
		return failed(ENOPROTOOPT);
	return (int)syscall(SYS_setsockopt, fd, level, option, value, length);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout)
{
	if (refuses("mmsg"))
		return failed(ENOSYS);
	return (int)syscall(SYS_recvmmsg, fd, messages, count, flags, timeout);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
	int error;

	if (refuses("mmsg"))
		return failed(ENOSYS);
	error = next_send_error();
	if (error != 0)
		return failed(error);
	return (int)syscall(SYS_sendmmsg, fd, messages, count, flags);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	if (clock == CLOCK_TAI && refuses("tai"))
		return failed(EINVAL);
	return (int)syscall(SYS_clock_gettime, clock, now);
}
