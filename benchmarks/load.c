/* Both ends of a proxy under test, in one process: a stand-in for Alpaca that sends trades, and the clients that count
   them. Only 127.0.0.1; ends by itself.

   It prints "listening PORT" (Alpaca's end), then reads "PORT PID…" from its input: where the proxy listens, and the
   processes whose processor time is the proxy's. It opens the clients, lets each log in and subscribe, prints "flowing",
   sends for `warm` seconds unmeasured and `seconds` measured, waits until all has come out, and prints a line of JSON.

   Two ways to send. `rate`: so many messages a second, each stamped with the time at which it is sent, and the clients
   keep a histogram of how long they took. `rate=0`, saturation: as fast as they come out. The sender then never is more
   than `window` bytes ahead of what the clients have counted, as no proxy here may lose anything: the real one would
   disconnect a client that falls megabytes behind, the others would grow without bound.

   A message is a trade of Alpaca's, as long as every other (JSON 117 bytes), or for `quotes` percent of them a quote
   (JSON only). From `surge_from` seconds on, for `surge_seconds`, the rate is `surge` times as high. How many should
   come out is known, as it is known which client asked for which symbol; so `lost` is exact. */

#include "ws.h"
#include <ctype.h>
#include <dirent.h>
#include <math.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
#endif

enum { READ_BYTES = 256 * 1024, RING_BYTES = 8 << 20, PIECE_BYTES = 128 * 1024, LATENCIES = 1 << 20, OPENING = 32 };

static struct {
    int clients, batch, symbols, per_client, slow, direct, tls, json_up, json_down, quotes;
    double rate, seconds, warm, surge, surge_from, surge_seconds;
    long window;
    const char *path;
} option = {.clients = 100, .batch = 10, .symbols = 8000, .json_up = 1, .json_down = 1, .seconds = 3, .warm = 0.5,
            .window = 256 * 1024, .path = "/v2/iex"};

enum state { UPGRADING, GREETED, AUTHENTICATING, SUBSCRIBING, READY, GONE };

struct client {
    int fd, slow;
    enum state state;
    uint64_t left;          /* of the payload that is being counted */
    uint8_t head[24];       /* the frame's head, and the payload's first bytes where they tell its messages */
    size_t head_size;
    uint8_t *whole;         /* a frame that has not come whole, where frames are read whole */
    size_t whole_size, whole_room;
#ifdef WITH_TLS
    SSL *ssl;
#endif
};

struct upstream {
    int fd, upgraded;
    uint8_t in[64 * 1024];
    size_t in_size;
};

static int poller;
static struct client *clients;
static struct upstream *upstreams[64];
static int upstream_count, live_upstreams, subscribed, opened, ready, lost_clients;
static uint32_t *holders;   /* by symbol: how many clients that read hold it */
static uint64_t offered, sent, expected, delivered, frames_heard, reads;
static uint32_t *latencies;
static int timing;
static pid_t pids[16];
static int pid_count, proxy_port;

static uint64_t seed = 88172645463325252ULL;
static uint32_t dice(uint32_t below)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (uint32_t)((seed >> 11) % below);
}

/* Messages */

static void symbol_text(int symbol, char out[4])
{
    for (int i = 3; i >= 0; i--)
        out[i] = (char)('A' + symbol % 26), symbol /= 26;
}

static const char shape[] = "{\"T\":\"t\",\"S\":\"AAAA\",\"i\":1000000000,\"x\":\"D\",\"p\":126.55,\"s\":100,"
                            "\"t\":\"2026-01-02T03:04:05.123456789Z\",\"c\":[\"@\"],\"z\":\"C\"}";
enum { SYMBOL_AT = 14, NUMBER_AT = 24, TIME_AT = 67, JSON_BYTES = sizeof shape - 1 };

static const char quote_shape[] = "{\"T\":\"q\",\"S\":\"AAAA\",\"bx\":\"U\",\"bp\":126.55,\"bs\":1,\"ax\":\"X\",\"ap\":126.57,"
                                  "\"as\":4,\"t\":\"2026-01-02T03:04:05.123456789Z\",\"c\":[\"R\"],\"z\":\"C\"}";
enum { QUOTE_TIME_AT = 81, QUOTE_BYTES = sizeof quote_shape - 1 };

static char clock_text[32];
static int64_t clock_minute = -1;

static void stamp_json(char *t, int64_t now)
{
    int64_t minute = now / 60000000000LL;
    if (minute != clock_minute) {
        time_t seconds = minute * 60;
        strftime(clock_text, sizeof clock_text, "%Y-%m-%dT%H:%M:", gmtime(&seconds));
        clock_minute = minute;
    }
    memcpy(t, clock_text, 17);
    uint32_t second = (uint32_t)(now / 1000000000LL % 60), fraction = (uint32_t)(now % 1000000000LL);
    t[17] = (char)('0' + second / 10), t[18] = (char)('0' + second % 10);
    for (int i = 28; i > 19; i--)
        t[i] = (char)('0' + fraction % 10), fraction /= 10;
}

static size_t json_message(char *out, int symbol, uint32_t number, int64_t now)
{
    memcpy(out, shape, JSON_BYTES);
    symbol_text(symbol, out + SYMBOL_AT);
    for (int i = NUMBER_AT + 9; i > NUMBER_AT; i--)
        out[i] = (char)('0' + number % 10), number /= 10;
    stamp_json(out + TIME_AT, now);
    return JSON_BYTES;
}

static size_t json_quote(char *out, int symbol, int64_t now)
{
    memcpy(out, quote_shape, QUOTE_BYTES);
    symbol_text(symbol, out + SYMBOL_AT);
    stamp_json(out + QUOTE_TIME_AT, now);
    return QUOTE_BYTES;
}

static const char packed_shape[] = "\x89\xa1T\xa1t\xa1S\xa4" "AAAA\xa1i\xce\0\0\0\0\xa1x\xa1" "D\xa1p\xcb\x40\x5f\xa3\x33"
                                   "\x33\x33\x33\x33\xa1s\x64\xa1t\xd7\xff\0\0\0\0\0\0\0\0\xa1" "c\x91\xa1@\xa1z\xa1" "C";
enum { PACKED_BYTES = sizeof packed_shape - 1, PACKED_SYMBOL_AT = 8, PACKED_NUMBER_AT = 15, PACKED_TIME_AT = 41 };

static size_t packed_message(char *out, int symbol, uint32_t number, int64_t now)
{
    memcpy(out, packed_shape, PACKED_BYTES);
    symbol_text(symbol, out + PACKED_SYMBOL_AT);
    for (int i = 0; i < 4; i++)
        out[PACKED_NUMBER_AT + i] = (char)(number >> (24 - 8 * i));
    uint64_t both = (uint64_t)(now % 1000000000LL) << 34 | (uint64_t)(now / 1000000000LL);
    for (int i = 0; i < 8; i++)
        out[PACKED_TIME_AT + i] = (char)(both >> (56 - 8 * i));
    return PACKED_BYTES;
}

/* One frame of `batch` trades; how many deliveries it should make is added to `*due`. */
static size_t data_frame(uint8_t *out, uint64_t *due)
{
    static uint32_t number;
    static uint8_t payload[1 << 20];
    uint8_t *p = payload;
    int64_t now = now_ns(CLOCK_REALTIME);
    if (!option.json_up) {
        if (option.batch < 16)
            *p++ = 0x90 | (uint8_t)option.batch;
        else
            *p++ = 0xDC, *p++ = (uint8_t)(option.batch >> 8), *p++ = (uint8_t)option.batch;
    }
    for (int i = 0; i < option.batch; i++) {
        int symbol = (int)dice((uint32_t)option.symbols);
        *due += holders[symbol];
        if (option.json_up) {
            *p++ = i ? ',' : '[';
            if (option.quotes && (int)dice(100) < option.quotes)
                p += json_quote((char *)p, symbol, now);
            else
                p += json_message((char *)p, symbol, number++, now);
        } else {
            p += packed_message((char *)p, symbol, number++, now);
        }
    }
    if (option.json_up)
        *p++ = ']';
    size_t size = (size_t)(p - payload);
    int head = ws_head(out, option.json_up ? WS_TEXT : WS_BINARY, size, 0);
    memcpy(out + head, payload, size);
    return (size_t)head + size;
}

/* What is said before data flows, in either codec */

static void say(int fd, const char *text, const char *packed, size_t packed_size)
{
    if (option.json_up)
        ws_send(fd, WS_TEXT, text, strlen(text), 0);
    else
        ws_send(fd, WS_BINARY, packed, packed_size, 0);
}
#define PACKED(literal) literal, sizeof literal - 1

static void say_connected(int fd)
{
    say(fd, "[{\"T\":\"success\",\"msg\":\"connected\"}]",
        PACKED("\x91\x82\xa1T\xa7success\xa3msg\xa9" "connected"));
}

static void say_authenticated(int fd)
{
    say(fd, "[{\"T\":\"success\",\"msg\":\"authenticated\"}]",
        PACKED("\x91\x82\xa1T\xa7success\xa3msg\xad" "authenticated"));
}

static void say_subscription(int fd)
{
    say(fd, "[{\"T\":\"subscription\"}]", PACKED("\x91\x81\xa1T\xac" "subscription"));
}

static void client_says(struct client *client, int opcode, const char *payload, size_t size)
{
#ifdef WITH_TLS
    if (client->ssl) { /* little, and early: it finds room */
        uint8_t *frame = malloc(size + 14);
        int head = ws_head(frame, opcode, size, 1);
        memcpy(frame + head, payload, size);
        SSL_write(client->ssl, frame, (int)(head + size));
        free(frame);
        return;
    }
#endif
    ws_send(client->fd, opcode, payload, size, 1);
}

static void say_auth(struct client *client)
{
    static const char text[] = "{\"action\":\"auth\",\"key\":\"bench\",\"secret\":\"bench\"}";
    static const char packed[] = "\x83\xa6" "action\xa4" "auth\xa3key\xa5" "bench\xa6secret\xa5" "bench";
    if (option.json_down)
        client_says(client, WS_TEXT, text, sizeof text - 1);
    else
        client_says(client, WS_BINARY, packed, sizeof packed - 1);
}

/* The client asks for its symbols: all with `*`, or `per_client` of them by lot. */
static void say_subscribe(struct client *client)
{
    int count = option.per_client ? option.per_client : 1;
    char *text = malloc((size_t)count * 16 + 128), *p = text, symbol[4];
    uint8_t *chosen = calloc(1, (size_t)option.symbols);
    if (option.json_down)
        p += sprintf(p, "{\"action\":\"subscribe\",\"trades\":[");
    else
        p += sprintf(p, "\x82\xa6" "action\xa9" "subscribe\xa6trades%c%c%c", 0xDC, count >> 8, count & 0xFF);
    for (int i = 0; i < count; i++) {
        int picked = 0;
        if (option.per_client) {
            do
                picked = (int)dice((uint32_t)option.symbols);
            while (chosen[picked]);
            chosen[picked] = 1;
            if (!client->slow)
                holders[picked]++;
            symbol_text(picked, symbol);
        } else {
            for (int s = 0; s < option.symbols && !client->slow; s++)
                holders[s]++;
        }
        int length = option.per_client ? 4 : 1;
        if (option.json_down)
            p += sprintf(p, "%s\"%.*s\"", i ? "," : "", length, option.per_client ? symbol : "*");
        else
            *p++ = (char)(0xA0 | length), memcpy(p, option.per_client ? symbol : "*", (size_t)length), p += length;
    }
    if (option.json_down && option.quotes) { /* the same symbols on the other channel */
        char *list = strchr(text, '['), *end = p;
        p += sprintf(p, "],\"quotes\":");
        memcpy(p, list, (size_t)(end - list));
        p += end - list;
    }
    if (option.json_down)
        p += sprintf(p, "]}");
    client_says(client, option.json_down ? WS_TEXT : WS_BINARY, text, (size_t)(p - text));
    free(text), free(chosen);
}

/* Alpaca's end */

static void upstream_gone(struct upstream *up)
{
    epoll_ctl(poller, EPOLL_CTL_DEL, up->fd, NULL);
    close(up->fd);
    up->fd = -1;
    live_upstreams--;
}

static void upstream_reads(struct upstream *up)
{
    ssize_t got = recv(up->fd, up->in + up->in_size, sizeof up->in - up->in_size - 1, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            upstream_gone(up);
        return;
    }
    up->in_size += (size_t)got;
    up->in[up->in_size] = 0;
    if (!up->upgraded) {
        int msgpack;
        if (!ws_upgrade(up->fd, (char *)up->in, &msgpack))
            return;
        up->upgraded = 1;
        up->in_size = 0;
        say_connected(up->fd);
        return;
    }
    size_t at = 0;
    uint64_t payload;
    int head;
    while ((head = ws_parse(up->in + at, up->in_size - at, &payload)) && at + (size_t)head + payload <= up->in_size) {
        uint8_t *body = up->in + at + head;
        if (up->in[at + 1] & 0x80)
            ws_unmask(body - 4, body, payload);
        int opcode = up->in[at] & 0x0F;
        if (opcode == WS_PING)
            ws_send(up->fd, WS_PONG, body, payload, 0);
        else if (opcode <= WS_BINARY && memmem(body, payload, "subscribe", 9))
            say_subscription(up->fd), subscribed = 1;
        else if (opcode <= WS_BINARY && memmem(body, payload, "auth", 4))
            say_authenticated(up->fd);
        at += (size_t)head + payload;
    }
    memmove(up->in, up->in + at, up->in_size -= at);
}

static void upstream_accepted(int listener)
{
    int fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        if (upstream_count == 64)
            die("too many upstream connections");
        struct upstream *up = upstreams[upstream_count++] = calloc(1, sizeof *up);
        up->fd = fd;
        live_upstreams++;
        nonblocking(fd);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = up};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

/* The clients' end */

static void client_gone(struct client *client)
{
    if (client->state == GONE)
        return;
    if (client->state != READY)
        die("a client was cut off before it was ready");
    if (!client->slow)
        lost_clients++;
    client->state = GONE;
    epoll_ctl(poller, EPOLL_CTL_DEL, client->fd, NULL);
    close(client->fd);
}

static void client_opens(struct client *client)
{
    char request[512];
    client->fd = connect_local(proxy_port);
#ifdef WITH_TLS
    if (option.tls) {
        static SSL_CTX *context;
        if (!context)
            context = SSL_CTX_new(TLS_client_method());
        client->ssl = SSL_new(context);
        SSL_set_fd(client->ssl, client->fd);
        if (SSL_connect(client->ssl) != 1)
            die("no TLS");
        SSL_set_mode(client->ssl, SSL_MODE_ENABLE_PARTIAL_WRITE);
    }
#endif
    nonblocking(client->fd);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    epoll_ctl(poller, EPOLL_CTL_ADD, client->fd, &event);
    int size = ws_request(request, sizeof request, option.path, proxy_port, !option.json_down);
    client->state = UPGRADING;
#ifdef WITH_TLS
    if (client->ssl) {
        SSL_write(client->ssl, request, size);
        return;
    }
#endif
    write_all(client->fd, request, (size_t)size);
}

static uint64_t braces(const uint8_t *p, size_t size)
{
    uint64_t count = 0;
    while (size) {
        uint8_t some = 0;
        size_t piece = size < 255 ? size : 255;
        for (size_t i = 0; i < piece; i++)
            some += p[i] == '}';
        count += some, p += piece, size -= piece;
    }
    return count;
}

/* How many messages a payload of msgpack announces. */
static uint64_t announced(const uint8_t *p)
{
    if ((p[0] & 0xF0) == 0x90)
        return p[0] & 0x0F;
    if (p[0] == 0xDC)
        return (uint64_t)p[1] << 8 | p[2];
    if (p[0] == 0xDD)
        return (uint64_t)p[1] << 24 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 8 | p[4];
    return 1;
}

/* Data, counted as it comes: no frame need be whole. */
static void client_counts(struct client *client, const uint8_t *p, size_t size)
{
    while (size) {
        if (client->left) {
            size_t piece = client->left < size ? client->left : size;
            if (option.json_down)
                delivered += braces(p, piece);
            client->left -= piece, p += piece, size -= piece;
            continue;
        }
        client->head[client->head_size++] = *p++, size--;
        uint64_t payload;
        int head = ws_parse(client->head, client->head_size, &payload);
        if (!head)
            continue;
        size_t first = option.json_down ? 0 : payload < 5 ? payload : 5;
        if (client->head_size < (size_t)head + first)
            continue;
        int opcode = client->head[0] & 0x0F;
        if (opcode == WS_PING)
            client_says(client, WS_PONG, "", 0);
        if (opcode <= WS_BINARY) {
            frames_heard++;
            if (!option.json_down)
                delivered += announced(client->head + head);
        }
        client->left = payload - first;
        client->head_size = 0;
    }
}

static void note_latencies(const uint8_t *p, size_t size)
{
    int64_t now = now_ns(CLOCK_REALTIME) % 60000000000LL;
    const uint8_t *end = p + size, *brace;
    while ((brace = memchr(p, '}', (size_t)(end - p)))) {
        const uint8_t *z = brace;
        while (*z != 'Z')
            z--;
        int64_t fraction = 0, unit = 100000000;
        const uint8_t *digit = z;
        while (*digit != '.' && *digit != ':')
            digit--;
        const uint8_t *dot = digit;
        for (digit++; *dot == '.' && digit < z; digit++)
            fraction += (*digit - '0') * unit, unit /= 10;
        int64_t then = ((dot[-2] - '0') * 10 + dot[-1] - '0') * 1000000000LL + fraction;
        int64_t took = now - then;
        if (took < 0)
            took += 60000000000LL;
        took /= 1000;
        latencies[took < LATENCIES ? took : LATENCIES - 1]++;
        delivered++;
        p = brace + 1;
    }
}

static void client_hears(struct client *client, uint8_t *payload, size_t size)
{
    if (client->state == READY) {
        frames_heard++;
        note_latencies(payload, size);
    } else if (memmem(payload, size, "subscription", 12)) {
        client->state = READY;
        ready++;
    } else if (memmem(payload, size, "authenticated", 13)) {
        client->state = SUBSCRIBING;
        say_subscribe(client);
    } else if (memmem(payload, size, "connected", 9)) {
        client->state = AUTHENTICATING;
        say_auth(client);
    } else {
        die("refused: %.*s", (int)size, payload);
    }
}

static void client_keeps(struct client *client, const uint8_t *p, size_t size)
{
    if (client->whole_size + size > client->whole_room)
        client->whole = realloc(client->whole, client->whole_room = 2 * (client->whole_size + size));
    memcpy(client->whole + client->whole_size, p, size);
    client->whole_size += size;
}

static void client_takes(struct client *client, uint8_t *p, size_t size)
{
    if (client->state == READY && !timing) {
        client_counts(client, p, size);
        return;
    }
    if (client->whole_size) {
        client_keeps(client, p, size);
        p = client->whole, size = client->whole_size;
    }
    uint8_t *at = p, *end = p + size, *head_end;
    if (client->state == UPGRADING) {
        if (!(head_end = memmem(p, size, "\r\n\r\n", 4)))
            goto keep;
        if (memcmp(p, "HTTP/1.1 101", 12))
            die("no upgrade: %.*s", (int)size, p);
        client->state = GREETED;
        at = head_end + 4;
    }
    uint64_t payload;
    int head;
    while ((head = ws_parse(at, (size_t)(end - at), &payload)) && at + head + payload <= end) {
        int opcode = at[0] & 0x0F;
        if (opcode == WS_PING)
            client_says(client, WS_PONG, "", 0);
        else if (opcode <= WS_BINARY)
            client_hears(client, at + head, payload);
        at += head + payload;
        if (client->state == READY && !timing) {
            client->whole_size = 0;
            client_counts(client, at, (size_t)(end - at));
            return;
        }
    }
keep:
    if (client->whole_size) {
        memmove(client->whole, at, client->whole_size = (size_t)(end - at));
    } else if (at < end) {
        client_keeps(client, at, (size_t)(end - at));
    }
}

static void client_reads(struct client *client)
{
    static uint8_t buffer[READ_BYTES];
    ssize_t got;
#ifdef WITH_TLS
    if (client->ssl) {
        while ((got = SSL_read(client->ssl, buffer, sizeof buffer)) > 0)
            client_takes(client, buffer, (size_t)got);
        if (SSL_get_error(client->ssl, (int)got) != SSL_ERROR_WANT_READ)
            client_gone(client);
        return;
    }
#endif
    got = recv(client->fd, buffer, sizeof buffer, 0);
    reads++;
    if (got > 0)
        client_takes(client, buffer, (size_t)got);
    else if (got == 0 || (errno != EAGAIN && errno != EINTR))
        client_gone(client);
}

/* Processor time of the proxy, in nanoseconds, over all threads of its processes */

static double proxy_nanoseconds(double *system)
{
    double sum = 0;
    *system = 0;
    for (int i = 0; i < pid_count; i++) {
        char path[300], line[1024];
        snprintf(path, sizeof path, "/proc/%d/task", pids[i]);
        DIR *tasks = opendir(path);
        struct dirent *task;
        while (tasks && (task = readdir(tasks))) {
            if (!isdigit((unsigned char)task->d_name[0]))
                continue;
            snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pids[i], task->d_name);
            FILE *file = fopen(path, "r");
            if (file) {
                double ran = 0;
                if (fscanf(file, "%lf", &ran) == 1)
                    sum += ran;
                fclose(file);
            }
        }
        if (tasks)
            closedir(tasks);
        snprintf(path, sizeof path, "/proc/%d/stat", pids[i]);
        FILE *file = fopen(path, "r");
        if (file) {
            char *after = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
            unsigned long user_ticks, system_ticks;
            if (after && sscanf(after + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user_ticks,
                                &system_ticks) == 2)
                *system += (double)system_ticks * 1e9 / (double)sysconf(_SC_CLK_TCK);
            fclose(file);
        }
    }
    return sum;
}

/* Resident memory of the proxy, in KiB */
static long proxy_kib(void)
{
    long sum = 0;
    for (int i = 0; i < pid_count; i++) {
        char path[64];
        long pages;
        snprintf(path, sizeof path, "/proc/%d/statm", pids[i]);
        FILE *file = fopen(path, "r");
        if (file) {
            if (fscanf(file, "%*d %ld", &pages) == 1)
                sum += pages * (sysconf(_SC_PAGESIZE) / 1024);
            fclose(file);
        }
    }
    return sum;
}

/* The sender */

static uint8_t *ring;
static size_t *ring_ends;
static uint64_t *ring_due;
static size_t ring_frames, ring_size, ring_frame, ring_at;
static int running, stuck;
static uint8_t pending[2 << 20];
static size_t pending_size, pending_at;
static int64_t next_due, surge_begins, surge_ends;

static void build_ring(void)
{
    size_t most = (size_t)option.batch * (JSON_BYTES + 2) + 32;
    ring_frames = RING_BYTES / most;
    if (ring_frames > 100000)
        ring_frames = 100000;
    ring = malloc(ring_frames * most);
    ring_ends = malloc(ring_frames * sizeof *ring_ends);
    ring_due = calloc(ring_frames, sizeof *ring_due);
    for (size_t i = 0; i < ring_frames; i++) {
        ring_size += data_frame(ring + ring_size, &ring_due[i]);
        ring_ends[i] = ring_size;
    }
}

static void want_writable(struct upstream *up, int wanted)
{
    if (stuck == wanted)
        return;
    stuck = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = up};
    epoll_ctl(poller, EPOLL_CTL_MOD, up->fd, &event);
}

/* Saturation: more of the ring, as far as the window and the socket allow. */
static void pump(struct upstream *up, uint64_t window)
{
    want_writable(up, 0);
    for (;;) {
        size_t frame_begins = ring_frame ? ring_ends[ring_frame - 1] : 0;
        int enough = !running || expected - delivered > window;
        if (enough && ring_at == frame_begins)
            return;
        size_t piece = enough ? ring_ends[ring_frame] - ring_at : ring_size - ring_at;
        if (piece > PIECE_BYTES)
            piece = PIECE_BYTES;
        ssize_t wrote = send(up->fd, ring + ring_at, piece, MSG_NOSIGNAL);
        if (wrote < 0) {
            want_writable(up, 1);
            return;
        }
        ring_at += (size_t)wrote;
        while (ring_frame < ring_frames && ring_at >= ring_ends[ring_frame]) {
            expected += ring_due[ring_frame];
            sent += (uint64_t)option.batch, offered += (uint64_t)option.batch;
            ring_frame++;
        }
        if (ring_frame == ring_frames)
            ring_frame = ring_at = 0;
    }
}

/* A fixed rate: what is due by now. What the proxy does not take is not sent, but counts as offered. */
static void trickle(int64_t now)
{
    struct upstream *up = upstreams[0];
    while (running && next_due <= now) {
        int surging = option.surge && next_due >= surge_begins && next_due < surge_ends;
        next_due += (int64_t)(1e9 * option.batch / (surging ? option.rate * option.surge : option.rate));
        offered += (uint64_t)option.batch;
        if (pending_size)
            continue;
        pending_size = data_frame(pending, &expected);
        pending_at = 0;
        sent += (uint64_t)option.batch;
        if (option.direct) {
            for (int i = 0; i < upstream_count; i++)
                write_all(upstreams[i]->fd, pending, pending_size);
            pending_size = 0;
            continue;
        }
        ssize_t wrote = send(up->fd, pending, pending_size, MSG_NOSIGNAL);
        pending_at = wrote > 0 ? (size_t)wrote : 0;
        if (pending_at == pending_size)
            pending_size = 0;
    }
    if (pending_size) {
        ssize_t wrote = send(up->fd, pending + pending_at, pending_size - pending_at, MSG_NOSIGNAL);
        pending_at += wrote > 0 ? (size_t)wrote : 0;
        if (pending_at == pending_size)
            pending_size = 0;
        want_writable(up, pending_size > 0);
    }
}

/* One turn of the loop, at most `patience` nanoseconds. */
static int listener;
static void turn(int64_t patience)
{
    struct epoll_event events[256];
    struct timespec wait = {patience / 1000000000, patience % 1000000000};
    int count = epoll_pwait2(poller, events, 256, &wait, NULL);
    for (int i = 0; i < count; i++) {
        void *who = events[i].data.ptr;
        if (!who) {
            upstream_accepted(listener);
        } else if (who >= (void *)clients && who < (void *)(clients + option.clients)) {
            client_reads(who);
        } else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
            upstream_reads(who);
        }
    }
}

static struct upstream *live_upstream(void)
{
    for (int i = 0; i < upstream_count; i++)
        if (upstreams[i]->fd >= 0)
            return upstreams[i];
    return NULL;
}

static void run_until(int64_t end, uint64_t window)
{
    int64_t now;
    while ((now = now_ns(CLOCK_MONOTONIC)) < end) {
        if (!live_upstream())
            return;
        if (option.rate > 0)
            trickle(now);
        else
            pump(live_upstream(), window);
        int64_t patience = end - now < 10000000 ? end - now : 10000000;
        if (option.rate > 0 && next_due - now < patience)
            patience = next_due > now ? next_due - now : 0;
        turn(patience);
    }
}

static double percentile(const uint32_t *histogram, double share)
{
    uint64_t all = 0, seen = 0;
    for (int i = 0; i < LATENCIES; i++)
        all += histogram[i];
    for (int i = 0; i < LATENCIES; i++)
        if ((seen += histogram[i]) && (double)seen >= share * (double)all)
            return i;
    return 0;
}

static void read_options(int count, char **words)
{
    for (int i = 1; i < count; i++) {
        char *value = strchr(words[i], '=');
        if (!value)
            die("%s: expected name=value", words[i]);
        *value++ = 0;
        const char *name = words[i];
        double number = atof(value);
        if (!strcmp(name, "clients")) option.clients = (int)number;
        else if (!strcmp(name, "batch")) option.batch = (int)number;
        else if (!strcmp(name, "symbols")) option.symbols = (int)number;
        else if (!strcmp(name, "per_client")) option.per_client = (int)number;
        else if (!strcmp(name, "slow")) option.slow = (int)number;
        else if (!strcmp(name, "direct")) option.direct = (int)number;
        else if (!strcmp(name, "tls")) option.tls = (int)number;
        else if (!strcmp(name, "rate")) option.rate = number;
        else if (!strcmp(name, "seconds")) option.seconds = number;
        else if (!strcmp(name, "warm")) option.warm = number;
        else if (!strcmp(name, "quotes")) option.quotes = (int)number;
        else if (!strcmp(name, "surge")) option.surge = number;
        else if (!strcmp(name, "surge_from")) option.surge_from = number;
        else if (!strcmp(name, "surge_seconds")) option.surge_seconds = number;
        else if (!strcmp(name, "window")) option.window = (long)number;
        else if (!strcmp(name, "path")) option.path = value;
        else if (!strcmp(name, "upstream")) option.json_up = !strcmp(value, "json");
        else if (!strcmp(name, "downstream")) option.json_down = !strcmp(value, "json");
        else die("unknown option %s", name);
    }
    if (option.symbols > 456976 || option.per_client > option.symbols || option.batch > 4000)
        die("too many symbols, or messages a frame");
    if (option.quotes && !(option.json_up && option.json_down && option.rate > 0))
        die("quotes are JSON, at a rate");
#ifndef WITH_TLS
    if (option.tls)
        die("built without TLS");
#endif
}

int main(int count, char **words)
{
    int port = 0;
    read_options(count, words);
    timing = option.rate > 0 && option.json_down;
    holders = calloc((size_t)option.symbols, sizeof *holders);
    latencies = calloc(LATENCIES, sizeof *latencies);
    clients = calloc((size_t)option.clients + 1, sizeof *clients);
    poller = epoll_create1(0);
    listener = listen_local(&port);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    printf("listening %d\n", port);
    fflush(stdout);

    char line[256];
    if (!fgets(line, sizeof line, stdin))
        return 0;
    char *word = strtok(line, " \n");
    proxy_port = option.direct ? port : word ? atoi(word) : 0;
    while ((word = strtok(NULL, " \n")) && pid_count < 16)
        pids[pid_count++] = atoi(word);

    int64_t opening = now_ns(CLOCK_MONOTONIC);
    while (ready < option.clients || !subscribed) {
        while (opened < option.clients && opened - ready < OPENING) {
            clients[opened].slow = opened < option.slow;
            client_opens(&clients[opened++]);
        }
        turn(10000000);
        if (now_ns(CLOCK_MONOTONIC) - opening > 60000000000LL)
            die("only %d of %d clients are ready after a minute", ready, option.clients);
    }
    double opening_seconds = (double)(now_ns(CLOCK_MONOTONIC) - opening) / 1e9;
    for (int i = 0; i < option.slow; i++)
        epoll_ctl(poller, EPOLL_CTL_DEL, clients[i].fd, NULL);
    run_until(now_ns(CLOCK_MONOTONIC), 0);
    for (int64_t until = now_ns(CLOCK_MONOTONIC) + 300000000; now_ns(CLOCK_MONOTONIC) < until;)
        turn(10000000);
    if (!live_upstream())
        die("no upstream connection");

    double fanout = 0;
    for (int s = 0; s < option.symbols; s++)
        fanout += (double)holders[s] / option.symbols;
    size_t message = option.json_up ? JSON_BYTES : PACKED_BYTES;
    uint64_t window = (uint64_t)(fanout * (double)option.window / (double)message) + 1;
    if (!(option.rate > 0))
        build_ring();

    printf("flowing\n");
    fflush(stdout);
    double system_before, system_after;
    running = 1;
    int64_t began = now_ns(CLOCK_MONOTONIC);
    next_due = began;
    run_until(began + (int64_t)(option.warm * 1e9), window);
    memset(latencies, 0, LATENCIES * sizeof *latencies);
    uint64_t delivered_before = delivered, frames_before = frames_heard, offered_before = offered;
    uint64_t sent_before = sent;
    int64_t from = now_ns(CLOCK_MONOTONIC);
    surge_begins = from + (int64_t)(option.surge_from * 1e9);
    surge_ends = surge_begins + (int64_t)(option.surge_seconds * 1e9);
    double before = proxy_nanoseconds(&system_before);
    run_until(from + (int64_t)(option.seconds * 1e9), window);
    double after = proxy_nanoseconds(&system_after);
    double lasted = (double)(now_ns(CLOCK_MONOTONIC) - from) / 1e9;
    double taken = (double)(sent - sent_before);
    double got = (double)(delivered - delivered_before), heard = (double)(frames_heard - frames_before);
    double wanted = (double)(offered - offered_before);
    long kib = proxy_kib();
    double p50 = percentile(latencies, 0.5), p90 = percentile(latencies, 0.9), p99 = percentile(latencies, 0.99);
    double p999 = percentile(latencies, 0.999), most = percentile(latencies, 1);

    running = 0;
    int64_t progress = now_ns(CLOCK_MONOTONIC);
    for (uint64_t had = delivered; delivered < expected && now_ns(CLOCK_MONOTONIC) - progress < 1000000000LL;) {
        run_until(now_ns(CLOCK_MONOTONIC) + 10000000, 0);
        if (delivered != had)
            had = delivered, progress = now_ns(CLOCK_MONOTONIC);
        if (now_ns(CLOCK_MONOTONIC) - from > (int64_t)((option.seconds + 5) * 1e9))
            break;
    }
    double base = option.clients ? got : taken; /* a contender that only receives delivers nothing */
    double unsent = (double)(offered - sent);
    printf("{\"seconds\": %.3f, \"offered_per_second\": %.0f, \"delivered\": %.0f, \"delivered_per_second\": %.0f, "
           "\"cpu_ns\": %.2f, \"system_ns\": %.2f, \"cpu_share\": %.4f, \"frame_messages\": %.2f, \"lost\": %lld, "
           "\"unsent\": %.0f, \"disconnected\": %d, \"opening_seconds\": %.3f, \"fanout\": %.3f, "
           "\"proxy_kib\": %ld, "
           "\"latency_us\": {\"p50\": %.0f, \"p90\": %.0f, \"p99\": %.0f, \"p999\": %.0f, \"max\": %.0f}}\n",
           lasted, wanted / lasted, got, got / lasted, base ? (after - before) / base : 0,
           base ? (system_after - system_before) / base : 0, (after - before) / lasted / 1e9, heard ? got / heard : 0,
           (long long)expected - (long long)delivered, unsent, lost_clients, opening_seconds, fanout, kib, p50, p90, p99,
           p999, most);
    return 0;
}
