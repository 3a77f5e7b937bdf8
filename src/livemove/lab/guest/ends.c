/*
 * Who may talk to the guest: the serial console, TCP port 8 (commands), TCP port 7 (echo) and the ACPI power button.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000u
#define SECOND 1000000000u
#define CLIENTS 64
#define BUTTONS 4
#define CONSOLE 0 /* slots of `ends`: the serial console, two listeners, input devices, then clients */
#define ECHO_LISTENER 1
#define CONTROL_LISTENER 2
#define FIRST_BUTTON 3
#define FIRST_CLIENT (FIRST_BUTTON + BUTTONS)
#define ENDS (FIRST_CLIENT + CLIENTS)
#define NOBODY (-1)

struct end {
    int port; /* 7 or 8; 0 for the console */
    unsigned length;
    char line[128];
};

static struct pollfd polled[ENDS];
static struct end ends[ENDS];

static void obey(int end, const char *line);
static void forget(int end);

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static void nap(uint64_t duration_ns)
{
    struct timespec duration = {(time_t)(duration_ns / SECOND), (long)(duration_ns % SECOND)};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &duration, NULL);
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = (int)sizeof line - 2;
    line[length] = '\n';
    if (write(STDOUT_FILENO, line, (size_t)length + 1) < 0)
        return; /* a console that is gone is no reason to stop */
}

static void drop(int end)
{
    close(polled[end].fd);
    polled[end].fd = -1;
    forget(end);
}

__attribute__((format(printf, 2, 3))) static void answer(int end, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text - 1, format, arguments);
    va_end(arguments);
    if (end == CONSOLE) {
        say("LM answer %s", text);
        return;
    }
    text[length] = '\n';
    if (polled[end].fd >= 0 && send(polled[end].fd, text, (size_t)length + 1, MSG_NOSIGNAL) != length + 1)
        drop(end);
}

static void listen_on(int end, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ends[end].port = port;
    polled[end] = (struct pollfd){.fd = fd, .events = POLLIN};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 16) < 0)
        drop(end); /* a guest without a network is still checked over its console */
}

static void open_ends(void)
{
    struct termios terminal;
    for (int end = 0; end < ENDS; end++)
        polled[end].fd = -1;
    if (tcgetattr(STDIN_FILENO, &terminal) == 0) {
        terminal.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    }
    polled[CONSOLE] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
    listen_on(ECHO_LISTENER, 7);
    listen_on(CONTROL_LISTENER, 8);
    for (int button = 0; button < BUTTONS; button++) {
        char name[] = "/dev/input/event0";
        name[sizeof name - 2] += (char)button;
        int fd = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        polled[FIRST_BUTTON + button] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
}

static void welcome(int listener)
{
    int one = 1, fd = accept4(polled[listener].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int end = FIRST_CLIENT; end < ENDS; end++)
        if (polled[end].fd < 0) {
            polled[end] = (struct pollfd){.fd = fd, .events = POLLIN};
            ends[end] = (struct end){.port = ends[listener].port};
            return;
        }
    close(fd);
}

static void listen_to(int end)
{
    char data[2048];
    ssize_t length = read(polled[end].fd, data, sizeof data);
    if (length <= 0) {
        if (length == 0 || (errno != EAGAIN && errno != EINTR))
            drop(end);
        return;
    }
    if (ends[end].port == 7) {
        if (send(polled[end].fd, data, (size_t)length, MSG_NOSIGNAL) != length)
            drop(end); /* echoes are small; whoever sends more than it reads is not waited for */
        return;
    }
    struct end *from = &ends[end];
    for (ssize_t i = 0; i < length && polled[end].fd >= 0; i++) {
        if (data[i] == '\n' || data[i] == '\r') {
            from->line[from->length] = 0;
            if (from->length > 0)
                obey(end, from->line);
            from->length = 0;
        } else if (from->length < sizeof from->line - 1) {
            from->line[from->length++] = data[i];
        }
    }
}

static void feel(int button)
{
    struct input_event pressed;
    ssize_t length = read(polled[button].fd, &pressed, sizeof pressed);
    if (length < 0 && errno != EAGAIN)
        drop(button);
    else if (length == sizeof pressed && pressed.type == EV_KEY && pressed.code == KEY_POWER && pressed.value)
        obey(CONSOLE, "poweroff");
}

/* Waits at most `patience_ns` for something to be said, and deals with it. */
static void serve(uint64_t patience_ns)
{
    struct timespec patience = {0, (long)patience_ns};
    if (ppoll(polled, ENDS, &patience, NULL) <= 0)
        return;
    for (int end = 0; end < ENDS; end++) {
        if (polled[end].fd < 0 || !polled[end].revents)
            continue;
        if (end == ECHO_LISTENER || end == CONTROL_LISTENER)
            welcome(end);
        else if (end >= FIRST_BUTTON && end < FIRST_CLIENT)
            feel(end);
        else
            listen_to(end);
    }
}
