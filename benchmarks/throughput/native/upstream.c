/* A fast upstream of the Responses API on 127.0.0.1: WebSocket mode and HTTP with SSE, on one port.
 *
 *   upstream [--port 0] [--size 40]        prints the port as its first line
 *
 * A turn is four events of preamble, text deltas, and four events of conclusion. How it goes is
 * stated in the input text, which every proxy passes on (the last such mark counts):
 *
 *   [[turn deltas=300 batch=1 pace_us=0]]
 *
 *   deltas   text deltas of the turn
 *   batch    events handed to one send(): 1 is a read per event, as far as the reader keeps up
 *   pace_us  microseconds from one delta to the next; 0 is as fast as possible. The preamble and
 *            the first delta come at once, the conclusion with the last delta
 *
 * Each delta's text begins with its number and the monotonic clock at its sending (ns), from which
 * the load generator knows how long it was under way. Over WebSocket a turn may continue the latest
 * response of its connection only, as with store=false; over HTTP any, so that a plain proxy can be
 * measured with the same turns.
 *
 *   POST /admin/reset   resets every WebSocket connection (RST)
 *   GET /admin/stats    {"turns": completed, "websockets": open}
 */
#include "common.h"

#include <sys/timerfd.h>

#define MAX_DESCRIPTOR 65536
#define MAX_UNSENT 65536 /* bytes; a turn waits while its reader is this far behind */
#define ID_SIZE 64
#define PREAMBLE 4
#define NOT_QUEUED (-1)

typedef struct {
    int descriptor;
    bool websocket, dead, wants_write, closing;
    Buffer in, out, fragments;
    /* The running turn. */
    bool active;
    int step; /* events sent; also the number of the next one */
    int deltas, batch, timer_index;
    uint64_t pace_ns, due_ns;
    char response_id[ID_SIZE], item_id[ID_SIZE], previous_id[ID_SIZE + 2], model[ID_SIZE];
    Buffer text; /* of the deltas sent so far */
    char latest_id[ID_SIZE]; /* the response that the next turn may continue */
} Connection;

static Connection *connections[MAX_DESCRIPTOR];
static Connection *timers[MAX_DESCRIPTOR]; /* a binary heap by due_ns */
static int timer_count;
static int poller, timer_descriptor;
static int delta_size = 40;
static uint64_t turn_count, response_count, websocket_count;
static Buffer dead; /* Connection pointers: freed after the events at hand, which may name them */

/* Timers. */

static void place(int index, Connection *connection)
{
    timers[index] = connection;
    connection->timer_index = index;
}

static void sift(int index)
{
    Connection *moved = timers[index];
    while (index > 0 && timers[(index - 1) / 2]->due_ns > moved->due_ns) {
        place(index, timers[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    for (;;) {
        int child = 2 * index + 1;
        if (child + 1 < timer_count && timers[child + 1]->due_ns < timers[child]->due_ns)
            child++;
        if (child >= timer_count || timers[child]->due_ns >= moved->due_ns)
            break;
        place(index, timers[child]);
        index = child;
    }
    place(index, moved);
}

static void schedule(Connection *connection)
{
    if (connection->timer_index == NOT_QUEUED)
        place(timer_count++, connection);
    sift(connection->timer_index);
}

static void unschedule(Connection *connection)
{
    int index = connection->timer_index;
    if (index == NOT_QUEUED)
        return;
    connection->timer_index = NOT_QUEUED;
    if (index == --timer_count)
        return;
    place(index, timers[timer_count]);
    sift(index);
}

static void arm_timer(void)
{
    uint64_t due = timer_count ? timers[0]->due_ns : 0;
    struct itimerspec at = {
        .it_value = {(time_t)(due / NS_PER_SECOND), (long)(due % NS_PER_SECOND)}};
    timerfd_settime(timer_descriptor, TFD_TIMER_ABSTIME, &at, NULL);
}

/* Connections. */

static void drop(Connection *connection, bool reset)
{
    if (connection->dead)
        return;
    connection->dead = true;
    unschedule(connection);
    if (reset) {
        struct linger at_once = {1, 0};
        setsockopt(connection->descriptor, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    }
    websocket_count -= connection->websocket;
    connections[connection->descriptor] = NULL;
    close(connection->descriptor);
    buffer_append(&dead, &connection, sizeof connection);
}

static void free_dead(void)
{
    Connection **all = (Connection **)(void *)buffer_head(&dead);
    for (size_t i = 0; i < buffered(&dead) / sizeof *all; i++) {
        buffer_free(&all[i]->in);
        buffer_free(&all[i]->out);
        buffer_free(&all[i]->fragments);
        buffer_free(&all[i]->text);
        free(all[i]);
    }
    buffer_consume(&dead, buffered(&dead));
}

static void flush(Connection *connection)
{
    Buffer *out = &connection->out;
    while (!connection->dead && buffered(out)) {
        ssize_t sent =
            send(connection->descriptor, buffer_head(out), buffered(out), MSG_NOSIGNAL);
        if (sent > 0)
            buffer_consume(out, (size_t)sent);
        else if (errno == EAGAIN)
            break;
        else
            drop(connection, false);
    }
    if (connection->dead)
        return;
    if (!buffered(out) && connection->closing) {
        drop(connection, false);
        return;
    }
    bool wants_write = buffered(out) > 0;
    if (wants_write != connection->wants_write) {
        struct epoll_event interest = {EPOLLIN | (wants_write ? EPOLLOUT : 0u), {connection}};
        epoll_ctl(poller, EPOLL_CTL_MOD, connection->descriptor, &interest);
        connection->wants_write = wants_write;
    }
}

/* Events out. */

enum { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };

static void put_frame(Connection *connection, int opcode, const char *payload, size_t size)
{
    unsigned char head[10] = {(unsigned char)(0x80 | opcode)};
    size_t head_size = 2;
    if (size < 126) {
        head[1] = (unsigned char)size;
    } else if (size < 65536) {
        head[1] = 126;
        head[2] = (unsigned char)(size >> 8);
        head[3] = (unsigned char)size;
        head_size = 4;
    } else {
        head[1] = 127;
        for (int i = 0; i < 8; i++)
            head[2 + i] = (unsigned char)((uint64_t)size >> (56 - 8 * i));
        head_size = 10;
    }
    buffer_append(&connection->out, head, head_size);
    buffer_append(&connection->out, payload, size);
}

static void put_event(Connection *connection, const char *type, const char *json, size_t size)
{
    if (connection->websocket) {
        put_frame(connection, TEXT, json, size);
        return;
    }
    char head[160];
    size_t chunk = strlen("event: \ndata: \n\n") + strlen(type) + size;
    int head_size = sprintf(head, "%zx\r\nevent: %s\ndata: ", chunk, type);
    buffer_append(&connection->out, head, (size_t)head_size);
    buffer_append(&connection->out, json, size);
    buffer_append(&connection->out, "\n\n\r\n", 4);
}

static Buffer json; /* of the event that is being written */

static void put_json(const char *text)
{
    buffer_append(&json, text, strlen(text));
}

static void put_text(const Connection *connection)
{
    buffer_append(&json, buffer_head(&connection->text), buffered(&connection->text));
}

static void put_part(const Connection *connection, bool complete)
{
    put_json("{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":\"");
    if (complete)
        put_text(connection);
    put_json("\"}");
}

static void put_item(const Connection *connection, bool complete)
{
    put_json("{\"id\":\"");
    put_json(connection->item_id);
    put_json("\",\"type\":\"message\",\"status\":\"");
    put_json(complete ? "completed\",\"content\":[" : "in_progress\",\"content\":[");
    if (complete)
        put_part(connection, true);
    put_json("],\"role\":\"assistant\"}");
}

static void put_response(const Connection *connection, bool complete)
{
    put_json("{\"id\":\"");
    put_json(connection->response_id);
    put_json("\",\"object\":\"response\",\"created_at\":1767225600,\"status\":\"");
    put_json(complete ? "completed" : "in_progress");
    put_json("\",\"background\":false,\"error\":null,\"incomplete_details\":null,"
             "\"instructions\":null,\"max_output_tokens\":null,\"max_tool_calls\":null,"
             "\"model\":\"");
    put_json(connection->model);
    put_json("\",\"output\":[");
    if (complete)
        put_item(connection, true);
    put_json("],\"parallel_tool_calls\":true,\"previous_response_id\":");
    put_json(connection->previous_id);
    put_json(",\"prompt_cache_key\":null,\"reasoning\":{\"effort\":\"medium\",\"summary\":null},"
             "\"safety_identifier\":null,\"service_tier\":\"default\",\"store\":false,"
             "\"temperature\":1.0,\"text\":{\"format\":{\"type\":\"text\"},"
             "\"verbosity\":\"medium\"},"
             "\"tool_choice\":\"auto\",\"tools\":[],\"top_logprobs\":0,\"top_p\":1.0,"
             "\"truncation\":\"disabled\",\"usage\":");
    put_json(complete ? "{\"input_tokens\":328,\"input_tokens_details\":{\"cached_tokens\":0},"
                        "\"output_tokens\":300,\"output_tokens_details\":{\"reasoning_tokens\":0},"
                        "\"total_tokens\":628}"
                      : "null");
    put_json(",\"user\":null,\"metadata\":{}}");
}

static void put_delta(Connection *connection)
{
    char text[64];
    int size = sprintf(text, "%06d %019llu ", connection->step - PREAMBLE,
                       (unsigned long long)now_ns());
    size_t before = buffered(&connection->text);
    buffer_append(&connection->text, text, (size_t)size);
    for (; size < delta_size; size++)
        buffer_append(&connection->text, &"lorem ipsum dolor sit amet "[size % 27], 1);
    put_json("\"delta\":\"");
    buffer_append(&json, buffer_head(&connection->text) + before, (size_t)size);
    put_json("\",\"logprobs\":[]}");
}

typedef enum {
    CREATED,
    IN_PROGRESS,
    ITEM_ADDED,
    PART_ADDED,
    DELTA,
    TEXT_DONE,
    PART_DONE,
    ITEM_DONE,
    COMPLETED
} Kind;

static const char *const TYPES[] = {
    "response.created",           "response.in_progress",       "response.output_item.added",
    "response.content_part.added", "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", "response.output_item.done",  "response.completed",
};

static Kind kind_of(const Connection *connection)
{
    int after_deltas = connection->step - PREAMBLE - connection->deltas;
    if (connection->step < PREAMBLE)
        return (Kind)connection->step;
    return after_deltas < 0 ? DELTA : (Kind)(TEXT_DONE + after_deltas);
}

/* The members that an event has besides its type and number, and the end of the object. */
static void put_members(Connection *connection, Kind kind)
{
    if (kind == CREATED || kind == IN_PROGRESS || kind == COMPLETED) {
        put_json("\"response\":");
        put_response(connection, kind == COMPLETED);
        put_json("}");
        return;
    }
    if (kind == ITEM_ADDED || kind == ITEM_DONE) {
        put_json("\"output_index\":0,\"item\":");
        put_item(connection, kind == ITEM_DONE);
        put_json("}");
        return;
    }
    put_json("\"item_id\":\"");
    put_json(connection->item_id);
    put_json("\",\"output_index\":0,\"content_index\":0,");
    if (kind == DELTA) {
        put_delta(connection);
    } else if (kind == TEXT_DONE) {
        put_json("\"text\":\"");
        put_text(connection);
        put_json("\",\"logprobs\":[]}");
    } else {
        put_json("\"part\":");
        put_part(connection, kind == PART_DONE);
        put_json("}");
    }
}

/* Write the next event of the turn. */
static void write_step(Connection *connection)
{
    Kind kind = kind_of(connection);
    char number[32];
    sprintf(number, "%d,", connection->step);
    json.start = json.end = 0;
    put_json("{\"type\":\"");
    put_json(TYPES[kind]);
    put_json("\",\"sequence_number\":");
    put_json(number);
    put_members(connection, kind);
    put_event(connection, TYPES[kind], buffer_head(&json), buffered(&json));
    connection->step++;
    if (kind != COMPLETED)
        return;
    connection->active = false;
    turn_count++;
    strcpy(connection->latest_id, connection->response_id);
    buffer_free(&connection->text);
    if (!connection->websocket)
        buffer_append(&connection->out, "0\r\n\r\n", 5);
}

/* Run the turn as far as it can go now. */
static void advance(Connection *connection)
{
    int unsent_events = 0;
    while (connection->active && !connection->dead) {
        int last_delta = PREAMBLE + connection->deltas - 1;
        if (connection->pace_ns && connection->step > PREAMBLE && connection->step <= last_delta) {
            if (now_ns() < connection->due_ns) {
                schedule(connection);
                break;
            }
            connection->due_ns += connection->pace_ns;
        }
        if (buffered(&connection->out) > MAX_UNSENT) {
            flush(connection);
            if (connection->dead || buffered(&connection->out))
                break; /* goes on when the socket takes more */
        }
        write_step(connection);
        if (++unsent_events >= connection->batch && !connection->wants_write) {
            flush(connection);
            unsent_events = 0;
        }
    }
    if (!connection->dead)
        flush(connection);
}

/* Requests in. */

static void copy_string(const char *body, size_t size, const char *key, char *value)
{
    const char *at = memmem(body, size, key, strlen(key)), *end = body + size;
    size_t count = 0;
    if (at) {
        at += strlen(key);
        while (at < end && (*at == ' ' || *at == ':'))
            at++;
        if (at < end && *at++ == '"')
            while (at < end && *at != '"' && count < ID_SIZE - 1)
                value[count++] = *at++;
    }
    value[count] = 0;
}

static void read_mark(Connection *connection, const char *body, size_t size)
{
    const char *found = NULL, *from = body, *end = body + size;
    while ((from = memmem(from, (size_t)(end - from), "[[turn ", 7)))
        found = from += 7;
    long long pace_us = 0;
    connection->deltas = 300;
    connection->batch = 1;
    if (found)
        sscanf(found, "deltas=%d batch=%d pace_us=%lld", &connection->deltas, &connection->batch,
               &pace_us);
    connection->pace_ns = (uint64_t)pace_us * 1000;
}

static void start_turn(Connection *connection, const char *body, size_t size)
{
    char previous[ID_SIZE];
    copy_string(body, size, "\"previous_response_id\"", previous);
    copy_string(body, size, "\"model\"", connection->model);
    if (connection->websocket && previous[0] && strcmp(previous, connection->latest_id)) {
        static const char error[] =
            "{\"type\":\"error\",\"status\":400,\"error\":{\"type\":\"invalid_request_error\","
            "\"code\":\"previous_response_not_found\",\"message\":\"Previous response not found.\","
            "\"param\":\"previous_response_id\"}}";
        connection->latest_id[0] = 0;
        put_frame(connection, TEXT, error, sizeof error - 1);
        flush(connection);
        return;
    }
    read_mark(connection, body, size);
    unsigned long long number = ++response_count;
    sprintf(connection->response_id, "resp_n%016llx%012llx", number, number * 2654435761u);
    sprintf(connection->item_id, "msg_%016llx%012llx", number, number * 40503u);
    sprintf(connection->previous_id, previous[0] ? "\"%s\"" : "null", previous);
    connection->step = 0;
    connection->active = true;
    connection->due_ns = now_ns() + connection->pace_ns;
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    if (!connection->websocket)
        buffer_append(&connection->out, head, sizeof head - 1);
    advance(connection);
}

static void reply(Connection *connection, const char *status, const char *body)
{
    char head[200];
    int size = sprintf(head,
                       "HTTP/1.1 %s\r\nContent-Type: application/json\r\n"
                       "Content-Length: %zu\r\n\r\n",
                       status, strlen(body));
    buffer_append(&connection->out, head, (size_t)size);
    buffer_append(&connection->out, body, strlen(body));
    flush(connection);
}

static void sha1(const char *data, size_t size, unsigned char digest[20])
{
    /* RFC 3174. `padded` has room for what a handshake hashes, 60 bytes, and more. */
    uint32_t hash[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    unsigned char padded[192] = {0};
    size_t total = (size + 8) / 64 * 64 + 64;
    memcpy(padded, data, size);
    padded[size] = 0x80;
    for (int i = 0; i < 8; i++)
        padded[total - 1 - (size_t)i] = (unsigned char)((uint64_t)size * 8 >> (8 * i));
    for (size_t block = 0; block < total; block += 64) {
        uint32_t word[80], a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4];
        for (int i = 0; i < 80; i++) {
            if (i < 16) {
                const unsigned char *at = padded + block + 4 * i;
                word[i] = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8
                          | at[3];
            } else {
                uint32_t mixed = word[i - 3] ^ word[i - 8] ^ word[i - 14] ^ word[i - 16];
                word[i] = mixed << 1 | mixed >> 31;
            }
            uint32_t chosen, constant;
            if (i < 20) {
                chosen = (b & c) | (~b & d);
                constant = 0x5A827999;
            } else if (i < 40 || i >= 60) {
                chosen = b ^ c ^ d;
                constant = i < 40 ? 0x6ED9EBA1 : 0xCA62C1D6;
            } else {
                chosen = (b & c) | (b & d) | (c & d);
                constant = 0x8F1BBCDC;
            }
            uint32_t next = (a << 5 | a >> 27) + chosen + e + constant + word[i];
            e = d;
            d = c;
            c = b << 30 | b >> 2;
            b = a;
            a = next;
        }
        hash[0] += a;
        hash[1] += b;
        hash[2] += c;
        hash[3] += d;
        hash[4] += e;
    }
    for (int i = 0; i < 20; i++)
        digest[i] = (unsigned char)(hash[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const unsigned char *data, int size, char *text)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < size; i += 3) {
        int bits = data[i] << 16;
        bits |= i + 1 < size ? data[i + 1] << 8 : 0;
        bits |= i + 2 < size ? data[i + 2] : 0;
        *text++ = digits[bits >> 18 & 63];
        *text++ = digits[bits >> 12 & 63];
        *text++ = i + 1 < size ? digits[bits >> 6 & 63] : '=';
        *text++ = i + 2 < size ? digits[bits & 63] : '=';
    }
    *text = 0;
}

static void upgrade(Connection *connection, const char *key)
{
    char joined[128], accept[40], head[256];
    unsigned char digest[20];
    int size = sprintf(joined, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(joined, (size_t)size, digest);
    base64(digest, 20, accept);
    size = sprintf(head,
                   "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                   "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                   accept);
    buffer_append(&connection->out, head, (size_t)size);
    connection->websocket = true;
    websocket_count++;
    flush(connection);
}

static void reset_all(void)
{
    for (int i = 0; i < MAX_DESCRIPTOR; i++)
        if (connections[i] && connections[i]->websocket)
            drop(connections[i], true);
}

/* Handle one HTTP request; whether a whole one was there. */
static bool take_request(Connection *connection)
{
    char *request = buffer_head(&connection->in);
    size_t size = buffered(&connection->in);
    char *end = memmem(request, size, "\r\n\r\n", 4);
    if (!end)
        return false;
    size_t head_size = (size_t)(end - request) + 4;
    end[2] = 0; /* a string for the searches; a head that is waiting for its body gets it back */
    const char *length = strcasestr(request, "\r\ncontent-length:");
    const char *key = strcasestr(request, "\r\nsec-websocket-key:");
    size_t body_size = length ? strtoull(length + 17, NULL, 10) : 0;
    if (size < head_size + body_size) {
        end[2] = '\r';
        return false;
    }
    if (key)
        upgrade(connection, key + 20 + strspn(key + 20, " "));
    else if (strstr(request, "/responses HTTP"))
        start_turn(connection, request + head_size, body_size);
    else if (strstr(request, "/admin/reset")) {
        reset_all();
        reply(connection, "200 OK", "{}");
    } else if (strstr(request, "/admin/stats")) {
        char stats[128];
        sprintf(stats, "{\"turns\":%llu,\"websockets\":%llu}", (unsigned long long)turn_count,
                (unsigned long long)websocket_count);
        reply(connection, "200 OK", stats);
    } else
        reply(connection, "404 Not Found", "{}");
    buffer_consume(&connection->in, head_size + body_size);
    return true;
}

/* Handle one WebSocket frame; whether a whole one was there. */
static bool take_frame(Connection *connection)
{
    unsigned char *frame = (unsigned char *)buffer_head(&connection->in);
    size_t size = buffered(&connection->in), head_size = 2;
    if (size < 2)
        return false;
    int opcode = frame[0] & 15;
    bool final = frame[0] >> 7, masked = frame[1] >> 7;
    uint64_t length = frame[1] & 127;
    if (length >= 126) {
        int width = length == 126 ? 2 : 8;
        head_size += (size_t)width;
        if (size < head_size)
            return false;
        length = 0;
        for (int i = 0; i < width; i++)
            length = length << 8 | frame[2 + i];
    }
    if (!masked) {
        drop(connection, false);
        return false;
    }
    if (size < head_size + 4 + length)
        return false;
    uint32_t mask;
    memcpy(&mask, frame + head_size, 4);
    uint64_t wide_mask = (uint64_t)mask << 32 | mask, word;
    unsigned char *payload = frame + head_size + 4;
    size_t at = 0;
    for (; at + 8 <= length; at += 8) {
        memcpy(&word, payload + at, 8);
        word ^= wide_mask;
        memcpy(payload + at, &word, 8);
    }
    for (; at < length; at++)
        payload[at] ^= (unsigned char)(frame[head_size + at % 4]);

    if (opcode == CLOSE) {
        put_frame(connection, CLOSE, (char *)payload, length >= 2 ? 2 : 0);
        connection->active = false;
        unschedule(connection);
        connection->closing = true;
        flush(connection);
    } else if (opcode == PING) {
        put_frame(connection, PONG, (char *)payload, length);
        flush(connection);
    } else if (opcode != PONG) {
        buffer_append(&connection->fragments, payload, length);
        Buffer *message = &connection->fragments;
        if (final) {
            if (memmem(buffer_head(message), buffered(message), "\"response.create\"", 17))
                start_turn(connection, buffer_head(message), buffered(message));
            buffer_consume(message, buffered(message));
            buffer_trim(message);
        }
    }
    if (!connection->dead)
        buffer_consume(&connection->in, head_size + 4 + length);
    return true;
}

static void take_input(Connection *connection)
{
    bool taken = true;
    while (taken && !connection->dead && !connection->closing && buffered(&connection->in)) {
        /* During a turn only control frames are taken: the next turn waits for its end. */
        if (connection->active
            && (!connection->websocket || (*buffer_head(&connection->in) & 15) < CLOSE))
            break;
        taken = connection->websocket ? take_frame(connection) : take_request(connection);
    }
    if (!connection->dead) {
        buffer_trim(&connection->in);
        buffer_trim(&connection->out);
    }
}

static void receive(Connection *connection)
{
    static char bytes[READ_SIZE];
    for (;;) {
        ssize_t size = recv(connection->descriptor, bytes, sizeof bytes, 0);
        if (size > 0)
            buffer_append(&connection->in, bytes, (size_t)size);
        if (size == (ssize_t)sizeof bytes)
            continue;
        if (size == 0 || (size < 0 && errno != EAGAIN)) {
            drop(connection, false);
            return;
        }
        break;
    }
    take_input(connection);
}

static void accept_all(int listener)
{
    int descriptor;
    while ((descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        Connection *connection = calloc(1, sizeof *connection);
        if (!connection || descriptor >= MAX_DESCRIPTOR)
            die("too many connections");
        no_delay(descriptor);
        connection->descriptor = descriptor;
        connection->timer_index = NOT_QUEUED;
        connections[descriptor] = connection;
        struct epoll_event interest = {EPOLLIN, {connection}};
        epoll_ctl(poller, EPOLL_CTL_ADD, descriptor, &interest);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("accept");
}

static int listen_on(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096))
        die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    int port = 0;
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = option(argc, argv, &i, "--port")))
            port = atoi(value);
        else if ((value = option(argc, argv, &i, "--size")))
            delta_size = atoi(value);
        else {
            fprintf(stderr, "upstream: unknown argument %s\n", argv[i]);
            return 2;
        }
    }
    allow_all_descriptors();
    poller = epoll_create1(0);
    timer_descriptor = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int listener = listen_on(port);
    struct epoll_event interest = {EPOLLIN, {&listener}};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &interest);
    interest.data.ptr = &timer_descriptor;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer_descriptor, &interest);
    struct epoll_event events[512];
    for (;;) {
        arm_timer();
        int count = epoll_wait(poller, events, 512, -1);
        for (int i = 0; i < count; i++) {
            void *source = events[i].data.ptr;
            if (source == &listener) {
                accept_all(listener);
                continue;
            }
            if (source == &timer_descriptor)
                continue; /* due turns are looked for below */
            Connection *connection = source;
            if (!connection->dead && (events[i].events & ~(uint32_t)EPOLLOUT))
                receive(connection);
            if (!connection->dead && (events[i].events & EPOLLOUT)) {
                flush(connection);
                if (!connection->dead && !buffered(&connection->out))
                    advance(connection);
                if (!connection->dead && !connection->active)
                    take_input(connection);
            }
        }
        uint64_t now = now_ns();
        while (timer_count && timers[0]->due_ns <= now) {
            Connection *connection = timers[0];
            unschedule(connection);
            advance(connection);
            if (!connection->dead && !connection->active)
                take_input(connection);
        }
        free_dead();
    }
}
