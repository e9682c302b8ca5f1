/* Clients that stream turns over HTTP and SSE, check every event, and measure what that costs.
 *
 *   loadgen --url http://127.0.0.1:PORT/v1/responses [options]
 *
 *   --clients N    conversations, each on a connection of its own (8)
 *   --turns N      measured turns of each client, one after the other (10)
 *   --warmup N     turns of each client before those (0). Measuring begins when all have had theirs
 *   --deltas N, --batch N, --pace-us N   what the upstream is to send: see upstream.c
 *   --chain        continue the previous response of the client
 *   --at-once N    start a client's first turn only while fewer than N first turns are running
 *   --ramp-us N    time between the first turns of two clients
 *   --streams      measure one long turn of each client while all are running: print
 *                  {"running": N} when each has got its first delta, and measure from then on
 *   --window-ms N  with --streams: for so long (until all turns have ended)
 *   --hold         after the result, keep all connections open until standard input ends
 *   --pid P        the process whose CPU time is measured
 *   --timeout N    seconds until it is given up (120)
 *
 * The result is one line of JSON: turns that were completed and failed; first_p50_us from the
 * request to the first event; transit_p50_us and transit_p99_us from the upstream's sending of a
 * delta to its arrival; events, cpu_ns of the process and wall_ns of the measured time; why turns
 * failed. A turn fails if an event is missing, out of order, or repeated. Exit status 1: not all
 * turns were completed.
 */
#include "common.h"

#define ID_SIZE 64
#define PREAMBLE 4

typedef enum { IDLE, HEAD, BODY } Reading;
typedef enum { SIZED, CHUNKED, UNTIL_CLOSE } Framing;
typedef enum { CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS } Chunk;

typedef struct {
    int descriptor, number, turns;
    bool connected, wants_write, keep_alive, finished, waiting;
    Reading reading;
    Framing framing;
    Chunk chunk;
    uint64_t left; /* bytes of the body, or of the chunk */
    Buffer in, out, events;
    uint64_t asked_ns, first_ns;
    int deltas, place;
    long long sequence;
    bool completed, failed;
    char response_id[ID_SIZE], previous_id[ID_SIZE];
} Client;

typedef struct {
    double *values;
    size_t count, capacity;
} Samples;

static struct {
    char host[64], path[256];
    int port, clients, turns, warmup, deltas, batch, at_once, pid;
    long long pace_us, ramp_us, window_ms;
    double timeout;
    bool chain, streams, hold;
} want = {.host = "127.0.0.1",
          .path = "/v1/responses",
          .clients = 8,
          .turns = 10,
          .deltas = 300,
          .batch = 1,
          .timeout = 120};

static struct sockaddr_in address;
static Client *clients;
static int poller, begun, first_turns, waiting, finished, streaming;
static bool measuring, measured;
static uint64_t begin_ns, end_ns, begin_cpu, end_cpu, event_count, completed_turns, failed_turns;
static Samples first_us, transit_us;
static char reasons[4][160];
static int reason_count;

static void add_sample(Samples *samples, double value)
{
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity ? 2 * samples->capacity : 4096;
        samples->values = realloc(samples->values, samples->capacity * sizeof *samples->values);
        if (!samples->values)
            die("realloc");
    }
    samples->values[samples->count++] = value;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double quantile(Samples *samples, double share)
{
    if (!samples->count)
        return 0;
    qsort(samples->values, samples->count, sizeof *samples->values, compare);
    return samples->values[(size_t)(share * (double)(samples->count - 1))];
}

/* CPU time that the measured process has used, in all its threads. */
static uint64_t cpu_ns(void)
{
    clockid_t clock;
    struct timespec time;
    if (!want.pid)
        return 0;
    if (clock_getcpuclockid(want.pid, &clock) || clock_gettime(clock, &time))
        die("the CPU time of the process");
    return (uint64_t)time.tv_sec * NS_PER_SECOND + (uint64_t)time.tv_nsec;
}

/* The system counts the CPU time of a running process at ticks only, and exactly once it waits for
 * something. So it is given time to become idle, except where streams keep it busy throughout. */
static void settle(void)
{
    struct timespec pause = {0, 20000000};
    if (!want.streams)
        nanosleep(&pause, NULL);
}

static void begin_measuring(void)
{
    settle();
    measuring = true;
    begin_ns = now_ns();
    begin_cpu = cpu_ns();
}

static void end_measuring(void)
{
    if (!measuring)
        return;
    measuring = false;
    measured = true;
    end_ns = now_ns();
    settle();
    end_cpu = cpu_ns();
}

static void fail(Client *client, const char *why, const char *detail, size_t size)
{
    if (client->failed)
        return;
    client->failed = true;
    char reason[160];
    snprintf(reason, sizeof reason, "%s %.*s", why, (int)(size < 100 ? size : 100), detail);
    for (char *at = reason; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ')
            *at = '\'';
    for (int i = 0; i < reason_count; i++)
        if (!strcmp(reasons[i], reason))
            return;
    if (reason_count < 4)
        strcpy(reasons[reason_count++], reason);
}

/* Requests. */

static void watch(Client *client, int operation)
{
    client->wants_write = buffered(&client->out) > 0;
    struct epoll_event interest = {EPOLLIN | (client->wants_write ? EPOLLOUT : 0u), {client}};
    epoll_ctl(poller, operation, client->descriptor, &interest);
}

static void flush(Client *client)
{
    while (buffered(&client->out)) {
        ssize_t sent = send(client->descriptor, buffer_head(&client->out), buffered(&client->out),
                            MSG_NOSIGNAL);
        if (sent <= 0)
            break; /* a lost connection is noticed by reading */
        buffer_consume(&client->out, (size_t)sent);
    }
    if (client->wants_write != (buffered(&client->out) > 0))
        watch(client, EPOLL_CTL_MOD);
}

static void connect_client(Client *client)
{
    client->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client->descriptor < 0)
        die("socket");
    no_delay(client->descriptor);
    if (connect(client->descriptor, (struct sockaddr *)&address, sizeof address)
        && errno != EINPROGRESS)
        die("connect");
    client->connected = true;
    watch(client, EPOLL_CTL_ADD); /* its request is in `out`, and sent once it is connected */
}

static void disconnect(Client *client)
{
    if (client->connected)
        close(client->descriptor);
    client->connected = false;
    client->in.start = client->in.end = 0;
}

static void start_turn(Client *client)
{
    char body[1024], head[512];
    int size = sprintf(body,
                       "{\"model\":\"gpt-5\",\"input\":[{\"type\":\"message\",\"role\":\"user\","
                       "\"content\":[{\"type\":\"input_text\",\"text\":"
                       "\"%d %d [[turn deltas=%d batch=%d pace_us=%lld]]\"}]}],"
                       "\"stream\":true,\"store\":false,\"prompt_cache_key\":\"key-%d-%d\"",
                       client->number, client->turns, want.deltas, want.batch, want.pace_us,
                       (int)getpid(), client->number);
    if (want.chain && client->previous_id[0])
        size += sprintf(body + size, ",\"previous_response_id\":\"%s\"", client->previous_id);
    body[size++] = '}';
    int head_size = sprintf(head,
                            "POST %s HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\n"
                            "Accept: text/event-stream\r\nContent-Length: %d\r\n\r\n",
                            want.path, want.host, want.port, size);
    buffer_append(&client->out, head, (size_t)head_size);
    buffer_append(&client->out, body, (size_t)size);
    client->reading = HEAD;
    client->asked_ns = now_ns();
    client->first_ns = 0;
    client->deltas = client->place = 0;
    client->sequence = -1;
    client->completed = client->failed = false;
    client->response_id[0] = 0;
    client->events.start = client->events.end = 0;
    if (client->connected)
        flush(client);
    else
        connect_client(client);
}

/* What a client does next: a turn, wait until the others are warm, or nothing any more. */
static void next_turn(Client *client)
{
    if (client->turns == want.warmup && !measuring && !measured && !want.streams) {
        client->waiting = true;
        waiting++;
    } else if (client->turns < want.warmup + want.turns) {
        start_turn(client);
    } else {
        client->finished = true;
        if (++finished == want.clients)
            end_measuring();
    }
}

static void end_turn(Client *client)
{
    if (!client->completed)
        fail(client, "no response.completed", "", 0);
    else if (client->deltas != want.deltas)
        fail(client, "deltas are missing", "", 0);
    bool counts = want.streams || client->turns >= want.warmup;
    if (client->failed) {
        failed_turns++;
        client->previous_id[0] = 0;
    } else {
        strcpy(client->previous_id, client->response_id);
        completed_turns += counts;
        if (counts)
            add_sample(&first_us, (double)(client->first_ns - client->asked_ns) / 1e3);
    }
    first_turns -= client->turns == 0;
    client->turns++;
    client->reading = IDLE;
    if (!client->keep_alive)
        disconnect(client);
    buffer_trim(&client->in);
    buffer_trim(&client->events);
    next_turn(client);
}

/* Events. */

static const char *const PREAMBLE_TYPES[] = {"response.created", "response.in_progress",
                                             "response.output_item.added",
                                             "response.content_part.added"};
static const char *const CONCLUSION_TYPES[] = {"response.output_text.done",
                                               "response.content_part.done",
                                               "response.output_item.done", "response.completed"};

static const char *after(const char *data, size_t size, const char *key)
{
    const char *found = memmem(data, size, key, strlen(key));
    return found ? found + strlen(key) : NULL;
}

static void copy_until_quote(char *target, size_t room, const char *text)
{
    size_t size = 0;
    for (; size < room - 1 && text[size] && text[size] != '"'; size++)
        target[size] = text[size];
    target[size] = 0;
}

static void take_delta(Client *client, const char *data, size_t size)
{
    const char *text = after(data, size, "\"delta\":\"");
    if (client->place != PREAMBLE || !text || atoi(text) != client->deltas) {
        fail(client, "unexpected delta", data, size);
        return;
    }
    if (measuring) {
        uint64_t sent = strtoull(text + 7, NULL, 10);
        add_sample(&transit_us, (double)(now_ns() - sent) / 1e3);
    }
    if (++client->deltas == 1)
        streaming++;
}

static void take_event(Client *client, const char *data, size_t size)
{
    char type[64] = "";
    const char *at = after(data, size, "\"type\":\"");
    const char *number = after(data, size, "\"sequence_number\":");
    if (!client->first_ns)
        client->first_ns = now_ns();
    event_count += measuring;
    if (at)
        copy_until_quote(type, sizeof type, at);
    if (!number || strtoll(number, NULL, 10) != ++client->sequence)
        fail(client, "wrong sequence number:", data, size);
    if (!strcmp(type, "response.output_text.delta")) {
        take_delta(client, data, size);
        return;
    }
    int place = client->place++;
    const char *expected = place < PREAMBLE       ? PREAMBLE_TYPES[place]
                           : place < PREAMBLE + 4 ? CONCLUSION_TYPES[place - PREAMBLE]
                                                  : "nothing";
    if (strcmp(type, expected))
        fail(client, "unexpected event:", data, size);
    at = place == 0 ? after(data, size, "\"id\":\"") : NULL;
    if (at)
        copy_until_quote(client->response_id, ID_SIZE, at);
    client->completed = !strcmp(type, "response.completed");
}

/* Take the whole events of the stream: blocks of lines, of which the data line counts. */
static void take_stream(Client *client, const char *bytes, size_t size)
{
    buffer_append(&client->events, bytes, size);
    for (;;) {
        const char *block = buffer_head(&client->events);
        size_t there = buffered(&client->events);
        const char *end = there ? memmem(block, there, "\n\n", 2) : NULL;
        if (!end)
            return;
        for (const char *line = block; line < end;) {
            const char *line_end = memchr(line, '\n', (size_t)(end - line));
            if (!line_end)
                line_end = end;
            if (line_end - line > 6 && !memcmp(line, "data: ", 6))
                take_event(client, line + 6, (size_t)(line_end - line - 6));
            line = line_end + 1;
        }
        buffer_consume(&client->events, (size_t)(end - block) + 2);
    }
}

/* HTTP. Each takes what it can of `in`, and returns whether it took something. */

static bool take_head(Client *client)
{
    char *head = buffer_head(&client->in);
    char *end = memmem(head, buffered(&client->in), "\r\n\r\n", 4);
    if (!end)
        return false;
    end[2] = 0;
    const char *length = strcasestr(head, "\r\ncontent-length:");
    client->keep_alive = !strcasestr(head, "\r\nconnection: close");
    client->left = 0;
    client->chunk = CHUNK_SIZE;
    if (strcasestr(head, "\r\ntransfer-encoding: chunked")) {
        client->framing = CHUNKED;
    } else if (length) {
        client->framing = SIZED;
        client->left = strtoull(length + 17, NULL, 10);
    } else {
        client->framing = UNTIL_CLOSE;
        client->keep_alive = false;
    }
    if (atoi(head + 9) != 200)
        fail(client, "status", head + 9, 3);
    client->reading = BODY;
    buffer_consume(&client->in, (size_t)(end - head) + 4);
    if (client->framing == SIZED && !client->left)
        end_turn(client);
    return true;
}

static bool take_body_bytes(Client *client)
{
    size_t size = buffered(&client->in);
    if (client->framing != UNTIL_CLOSE && size > client->left)
        size = client->left;
    take_stream(client, buffer_head(&client->in), size);
    buffer_consume(&client->in, size);
    client->left -= client->framing == UNTIL_CLOSE ? 0 : size;
    return size > 0;
}

static bool take_chunk(Client *client)
{
    if (client->chunk == CHUNK_DATA) {
        bool taken = take_body_bytes(client);
        if (!client->left)
            client->chunk = CHUNK_END;
        return taken;
    }
    const char *line = buffer_head(&client->in);
    const char *end = memmem(line, buffered(&client->in), "\r\n", 2);
    if (!end)
        return false;
    bool empty = end == line;
    Chunk chunk = client->chunk;
    if (chunk == CHUNK_SIZE) {
        client->left = strtoull(line, NULL, 16);
        client->chunk = client->left ? CHUNK_DATA : TRAILERS;
    } else if (chunk == CHUNK_END) {
        client->chunk = CHUNK_SIZE;
    }
    buffer_consume(&client->in, (size_t)(end - line) + 2);
    if (chunk == TRAILERS && empty)
        end_turn(client);
    return true;
}

static bool take_body(Client *client)
{
    if (client->framing == CHUNKED)
        return take_chunk(client);
    bool taken = take_body_bytes(client);
    if (client->framing == SIZED && !client->left)
        end_turn(client);
    return taken;
}

static void receive(Client *client)
{
    static char bytes[READ_SIZE];
    ssize_t size = recv(client->descriptor, bytes, sizeof bytes, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size > 0) {
        buffer_append(&client->in, bytes, (size_t)size);
        bool taken = true;
        while (taken && client->reading != IDLE && buffered(&client->in))
            taken = client->reading == HEAD ? take_head(client) : take_body(client);
        return;
    }
    bool whole = client->reading == BODY && client->framing == UNTIL_CLOSE;
    if (client->reading != IDLE && !whole)
        fail(client, "connection closed during a turn", "", 0);
    client->keep_alive = false;
    if (client->reading != IDLE)
        end_turn(client);
    else
        disconnect(client);
}

/* The course of a measurement. */

static void start_clients(uint64_t *next_start)
{
    while (begun < want.clients && (!want.at_once || first_turns < want.at_once)
           && (!want.ramp_us || now_ns() >= *next_start)) {
        Client *client = &clients[begun];
        client->number = begun++;
        if (!want.warmup && !want.streams && !measuring)
            begin_measuring(); /* no warm-up: the first request begins it */
        first_turns++;
        *next_start = now_ns() + (uint64_t)want.ramp_us * 1000;
        next_turn(client);
    }
}

static void begin_when_ready(void)
{
    if (want.streams && !measuring && !measured && streaming == want.clients) {
        printf("{\"running\": %d}\n", streaming);
        fflush(stdout);
        begin_measuring();
    }
    if (waiting == want.clients && !measuring && !measured) {
        begin_measuring();
        waiting = 0;
        for (int i = 0; i < want.clients; i++)
            next_turn(&clients[i]);
    }
}

static void print_result(void)
{
    printf("{\"completed\": %llu, \"failed\": %llu, \"first_p50_us\": %.1f, "
           "\"transit_p50_us\": %.1f, \"transit_p99_us\": %.1f, \"events\": %llu, "
           "\"cpu_ns\": %llu, \"wall_ns\": %llu, \"reasons\": [",
           (unsigned long long)completed_turns, (unsigned long long)failed_turns,
           quantile(&first_us, 0.5), quantile(&transit_us, 0.5), quantile(&transit_us, 0.99),
           (unsigned long long)event_count, (unsigned long long)(end_cpu - begin_cpu),
           (unsigned long long)(end_ns - begin_ns));
    for (int i = 0; i < reason_count; i++)
        printf("%s\"%s\"", i ? ", " : "", reasons[i]);
    printf("]}\n");
    fflush(stdout);
}

static void read_arguments(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = option(argc, argv, &i, "--url")))
            sscanf(value, "http://%63[^:/]:%d%255s", want.host, &want.port, want.path);
        else if ((value = option(argc, argv, &i, "--clients")))
            want.clients = atoi(value);
        else if ((value = option(argc, argv, &i, "--turns")))
            want.turns = atoi(value);
        else if ((value = option(argc, argv, &i, "--warmup")))
            want.warmup = atoi(value);
        else if ((value = option(argc, argv, &i, "--deltas")))
            want.deltas = atoi(value);
        else if ((value = option(argc, argv, &i, "--batch")))
            want.batch = atoi(value);
        else if ((value = option(argc, argv, &i, "--pace-us")))
            want.pace_us = atoll(value);
        else if ((value = option(argc, argv, &i, "--at-once")))
            want.at_once = atoi(value);
        else if ((value = option(argc, argv, &i, "--ramp-us")))
            want.ramp_us = atoll(value);
        else if ((value = option(argc, argv, &i, "--window-ms")))
            want.window_ms = atoll(value);
        else if ((value = option(argc, argv, &i, "--pid")))
            want.pid = atoi(value);
        else if ((value = option(argc, argv, &i, "--timeout")))
            want.timeout = atof(value);
        else if (!strcmp(argv[i], "--chain"))
            want.chain = true;
        else if (!strcmp(argv[i], "--streams"))
            want.streams = true;
        else if (!strcmp(argv[i], "--hold"))
            want.hold = true;
        else {
            fprintf(stderr, "loadgen: unknown argument %s\n", argv[i]);
            exit(2);
        }
    }
    if (want.streams) {
        want.warmup = 0;
        want.turns = 1;
    }
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)want.port);
    if (inet_pton(AF_INET, want.host, &address.sin_addr) != 1
        || ntohl(address.sin_addr.s_addr) >> 24 != 127) {
        fprintf(stderr, "loadgen: only loopback addresses are measured\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    read_arguments(argc, argv);
    allow_all_descriptors();
    poller = epoll_create1(0);
    clients = calloc((size_t)want.clients, sizeof *clients);
    if (!clients)
        die("calloc");
    uint64_t started = now_ns(), next_start = 0;
    uint64_t give_up = started + (uint64_t)(want.timeout * 1e9);
    struct epoll_event events[512];
    while (finished < want.clients) {
        uint64_t now = now_ns();
        if (now > give_up) {
            fprintf(stderr, "loadgen: given up after %.0f s\n", want.timeout);
            break;
        }
        if (measuring && want.window_ms && now - begin_ns >= (uint64_t)want.window_ms * 1000000)
            break;
        start_clients(&next_start);
        begin_when_ready();
        bool in_time = (begun < want.clients && want.ramp_us) || want.window_ms;
        int count = epoll_wait(poller, events, 512, in_time ? 1 : 100);
        for (int i = 0; i < count; i++) {
            Client *client = events[i].data.ptr;
            if (client->connected && (events[i].events & EPOLLOUT))
                flush(client);
            if (client->connected && (events[i].events & ~(uint32_t)EPOLLOUT))
                receive(client);
        }
    }
    bool in_full = want.window_ms ? streaming == want.clients : finished == want.clients;
    end_measuring();
    print_result();
    if (want.hold) {
        char byte;
        while (read(STDIN_FILENO, &byte, 1) > 0)
            ;
    }
    return in_full && !failed_turns ? 0 : 1;
}
