/* What the upstream and the load generator share: a growing byte buffer, clocks, small helpers.
 *
 * Both are instruments for measuring a bridge on one Linux machine: single-threaded, epoll,
 * loopback only. They end the process when memory or descriptors run out, because a figure that
 * was measured after that would mean nothing.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000ull
#define READ_SIZE 262144 /* bytes asked of a socket at once */

/* Bytes between `start` and `end` are waiting; a buffer that becomes empty starts over. */
typedef struct {
    char *bytes;
    size_t start, end, capacity;
} Buffer;

static inline void die(const char *what)
{
    perror(what);
    exit(3);
}

static inline size_t buffered(const Buffer *buffer)
{
    return buffer->end - buffer->start;
}

static inline char *buffer_head(const Buffer *buffer)
{
    return buffer->bytes + buffer->start;
}

static inline void buffer_free(Buffer *buffer)
{
    free(buffer->bytes);
    memset(buffer, 0, sizeof *buffer);
}

/* Room for `size` more bytes at the end. */
static inline void buffer_reserve(Buffer *buffer, size_t size)
{
    if (buffer->end + size <= buffer->capacity)
        return;
    if (buffer->start) {
        memmove(buffer->bytes, buffer_head(buffer), buffered(buffer));
        buffer->end -= buffer->start;
        buffer->start = 0;
    }
    if (buffer->end + size <= buffer->capacity)
        return;
    size_t capacity = buffer->capacity ? buffer->capacity : 1024;
    while (capacity < buffer->end + size)
        capacity *= 2;
    buffer->bytes = realloc(buffer->bytes, capacity);
    if (!buffer->bytes)
        die("realloc");
    buffer->capacity = capacity;
}

static inline void buffer_append(Buffer *buffer, const void *bytes, size_t size)
{
    if (!size)
        return;
    buffer_reserve(buffer, size);
    memcpy(buffer->bytes + buffer->end, bytes, size);
    buffer->end += size;
}

static inline void buffer_consume(Buffer *buffer, size_t size)
{
    buffer->start += size;
    if (buffer->start == buffer->end)
        buffer->start = buffer->end = 0;
}

/* Idle connections keep no large buffers: thousands of them are held while memory is measured. */
static inline void buffer_trim(Buffer *buffer)
{
    if (!buffered(buffer) && buffer->capacity > 4096)
        buffer_free(buffer);
}

static inline uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * NS_PER_SECOND + (uint64_t)time.tv_nsec;
}

static inline void allow_all_descriptors(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* The value of option `name` if argument `*index` is it, else NULL; `*index` moves to the value. */
static inline const char *option(int argc, char **argv, int *index, const char *name)
{
    if (strcmp(argv[*index], name) || *index + 1 >= argc)
        return NULL;
    return argv[++*index];
}

static inline void no_delay(int socket)
{
    int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

#endif
