/* The limit that C and the kernel set: a relay that gives every client every byte of its one upstream connection, and
   knows nothing of symbols, bounds or codecs.

   relay MODE UPSTREAM_PORT   MODE is `frame`, one send for each frame and client, or `chunk`, one send for each piece
                              that was read (256 KiB at most). Prints "listening PORT"; ends with its input. */

#include "ws.h"

enum { MOST = 4096, CHUNK = 256 * 1024 };

static struct client {
    int fd, upgraded, subscribed;
    uint8_t in[128 * 1024];
    size_t in_size;
} *clients[MOST];
static int client_count, listening[MOST], listening_count;

static void client_said(struct client *client)
{
    ssize_t got = recv(client->fd, client->in + client->in_size, sizeof client->in - client->in_size - 1, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        for (int i = 0; i < listening_count; i++)
            if (listening[i] == client->fd)
                listening[i] = listening[--listening_count];
        close(client->fd);
        return;
    }
    client->in_size += (size_t)got;
    client->in[client->in_size] = 0;
    if (!client->upgraded) {
        int msgpack;
        if (!ws_upgrade(client->fd, (char *)client->in, &msgpack))
            return;
        client->upgraded = 1, client->in_size = 0;
        static const char hello[] = "[{\"T\":\"success\",\"msg\":\"connected\"}]";
        ws_send(client->fd, WS_TEXT, hello, sizeof hello - 1, 0);
        return;
    }
    uint64_t payload;
    int head;
    size_t at = 0;
    while ((head = ws_parse(client->in + at, client->in_size - at, &payload)) &&
           at + (size_t)head + payload <= client->in_size) {
        uint8_t *body = client->in + at + head;
        ws_unmask(body - 4, body, payload);
        if (memmem(body, payload, "subscribe", 9)) {
            static const char ack[] = "[{\"T\":\"subscription\"}]";
            ws_send(client->fd, WS_TEXT, ack, sizeof ack - 1, 0);
            if (!client->subscribed++)
                listening[listening_count++] = client->fd;
        } else if (memmem(body, payload, "auth", 4)) {
            static const char yes[] = "[{\"T\":\"success\",\"msg\":\"authenticated\"}]";
            ws_send(client->fd, WS_TEXT, yes, sizeof yes - 1, 0);
        }
        at += (size_t)head + payload;
    }
    memmove(client->in, client->in + at, client->in_size -= at);
}

/* One step of the log-in upstream: a frame is read, whatever it says. */
static void swallow(int fd)
{
    uint8_t head[16], body[4096];
    uint64_t payload = 0;
    size_t there = 0;
    while (!ws_parse(head, there, &payload))
        if (recv(fd, head + there++, 1, 0) != 1)
            die("upstream is gone");
    for (uint64_t had = 0; had < payload;) {
        ssize_t got = recv(fd, body, payload - had < sizeof body ? payload - had : sizeof body, 0);
        if (got <= 0)
            die("upstream is gone");
        had += (uint64_t)got;
    }
}

static int log_in(int port)
{
    char request[512], last[4] = "";
    int fd = connect_local(port), size = ws_request(request, sizeof request, "/v2/iex", port, 0);
    write_all(fd, request, (size_t)size);
    while (memcmp(last, "\r\n\r\n", 4)) {
        memmove(last, last + 1, 3);
        if (recv(fd, last + 3, 1, 0) != 1)
            die("upstream is gone");
    }
    swallow(fd);
    static const char auth[] = "{\"action\":\"auth\",\"key\":\"key\",\"secret\":\"secret\"}";
    static const char subscribe[] = "{\"action\":\"subscribe\",\"trades\":[\"*\"]}";
    ws_send(fd, WS_TEXT, auth, sizeof auth - 1, 1);
    swallow(fd);
    ws_send(fd, WS_TEXT, subscribe, sizeof subscribe - 1, 1);
    swallow(fd);
    nonblocking(fd);
    return fd;
}

static void give(const uint8_t *data, size_t size)
{
    for (int i = 0; i < listening_count; i++)
        write_all(listening[i], data, size);
}

int main(int count, char **words)
{
    if (count != 3)
        die("usage: relay frame|chunk UPSTREAM_PORT");
    int whole_chunks = !strcmp(words[1], "chunk"), port = 0;
    int listener = listen_local(&port), poller = epoll_create1(0);
    printf("listening %d\n", port);
    fflush(stdout);
    int upstream = log_in(atoi(words[2]));
    static uint8_t buffer[CHUNK];
    size_t size = 0;
    fcntl(listener, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN}, events[256];
    int sources[] = {0, listener, upstream};
    for (int i = 0; i < 3; i++) {
        event.data.ptr = (void *)(intptr_t)(i + 1);
        epoll_ctl(poller, EPOLL_CTL_ADD, sources[i], &event);
    }
    for (;;) {
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            intptr_t who = (intptr_t)events[i].data.ptr;
            if (who == 1) {
                char byte;
                if (read(0, &byte, 1) <= 0)
                    return 0;
            } else if (who == 2) {
                int fd;
                while (client_count < MOST && (fd = accept(listener, NULL, NULL)) >= 0) {
                    struct client *client = clients[client_count++] = calloc(1, sizeof *client);
                    client->fd = fd;
                    nonblocking(fd);
                    event.data.ptr = client;
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
                }
            } else if (who == 3) {
                ssize_t got = recv(upstream, buffer + size, sizeof buffer - size, 0);
                if (got <= 0) {
                    if (got < 0 && (errno == EAGAIN || errno == EINTR))
                        continue;
                    return 0;
                }
                size += (size_t)got;
                if (whole_chunks) {
                    give(buffer, size);
                    size = 0;
                    continue;
                }
                uint64_t payload;
                int head;
                size_t at = 0;
                while ((head = ws_parse(buffer + at, size - at, &payload)) && at + (size_t)head + payload <= size) {
                    give(buffer + at, (size_t)head + payload);
                    at += (size_t)head + payload;
                }
                memmove(buffer, buffer + at, size -= at);
            } else {
                client_said((struct client *)who);
            }
        }
    }
}
