// The load of test/bench-sensor: one kind of work, N times, and how long that
// took. It is C because a Go program's fork copies so much memory, and its
// runtime does so much beside, that the sensor's share would look small.
//
//	load exec N             fork, execve(/bin/true), wait for it
//	load open N FILE rd|rw  open for reading, or reading and writing; read 64 bytes; close
//	load connect N [CPU]    TCP connect over loopback to a forked server that accepts and closes
//
// It prints the nanoseconds and the number of failures.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void report(long began, long fails)
{
	printf("%ld %ld\n", now() - began, fails);
}

static void execs(long n)
{
	char *argv[] = {"/bin/true", NULL}, *env[] = {"PATH=/bin", NULL};
	long fails = 0, began = now();

	for (long i = 0; i < n; i++) {
		int status;
		pid_t p = fork();

		if (p == 0) {
			execve(argv[0], argv, env);
			_exit(127);
		}
		if (p < 0 || waitpid(p, &status, 0) != p || status)
			fails++;
	}
	report(began, fails);
}

static void opens(long n, const char *file, int flags)
{
	char b[64];
	long fails = 0, began = now();

	for (long i = 0; i < n; i++) {
		int fd = openat(AT_FDCWD, file, flags | O_CLOEXEC);

		if (fd < 0) {
			fails++;
			continue;
		}
		if (read(fd, b, sizeof(b)) < 0)
			fails++;
		close(fd);
	}
	report(began, fails);
}

static int connects(long n)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	// Closed with a reset, so that no socket stays behind in TIME_WAIT.
	struct linger reset = {1, 0};
	long fails = 0, began;
	pid_t server;
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (bind(l, (void *)&a, len) || listen(l, 4096) || getsockname(l, (void *)&a, &len)) {
		perror("server");
		return 1;
	}
	server = fork();
	if (server < 0) {
		perror("fork");
		return 1;
	}
	if (server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (long accepted = 0; accepted < n;) {
			int c = accept4(l, NULL, NULL, SOCK_CLOEXEC);

			if (c < 0)
				continue;
			close(c);
			accepted++;
		}
		_exit(0);
	}
	close(l);
	began = now();
	for (long i = 0; i < n; i++) {
		int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (s < 0) {
			fails++;
			continue;
		}
		setsockopt(s, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		if (connect(s, (void *)&a, sizeof(a)))
			fails++;
		close(s);
	}
	report(began, fails);
	// What waits in the backlog is accepted, so that the number of events is
	// known; with a failed connection the server would wait for ever.
	if (fails)
		kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	return 0;
}

int main(int argc, char **argv)
{
	long n = argc > 2 ? atol(argv[2]) : 0;

	if (argc == 3 && !strcmp(argv[1], "exec")) {
		execs(n);
		return 0;
	}
	if (argc == 5 && !strcmp(argv[1], "open")) {
		opens(n, argv[3], strcmp(argv[4], "rw") ? O_RDONLY : O_RDWR);
		return 0;
	}
	if (argc >= 3 && !strcmp(argv[1], "connect")) {
		if (argc == 4) {
			cpu_set_t one;

			CPU_ZERO(&one);
			CPU_SET(atoi(argv[3]), &one);
			if (sched_setaffinity(0, sizeof(one), &one)) {
				perror("sched_setaffinity");
				return 1;
			}
		}
		return connects(n);
	}
	fprintf(stderr, "usage: load exec N | open N FILE rd|rw | connect N [CPU]\n");
	return 2;
}
