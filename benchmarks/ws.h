/* What load.c and relay.c share of RFC 6455: the upgrade of both sides, frame heads, and sockets on 127.0.0.1. */

#ifndef WS_H
#define WS_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

static inline void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static inline int64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* SHA-1 of a short text (RFC 3174), as the upgrade wants it. */
static inline uint32_t ws_rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }

static inline void ws_sha1(const uint8_t *data, size_t size, uint8_t digest[20])
{
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0}, w[80];
    uint8_t padded[192] = {0};
    size_t blocks = (size + 8) / 64 + 1;
    if (blocks * 64 > sizeof padded)
        die("key too long");
    memcpy(padded, data, size);
    padded[size] = 0x80;
    for (int i = 0; i < 8; i++)
        padded[blocks * 64 - 1 - i] = (uint8_t)((uint64_t)size * 8 >> (8 * i));
    for (size_t block = 0; block < blocks; block++) {
        const uint8_t *p = padded + block * 64;
        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
        for (int i = 16; i < 80; i++)
            w[i] = ws_rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f, k;
            if (i < 20)
                f = (b & c) | (~b & d), k = 0x5A827999;
            else if (i < 40)
                f = b ^ c ^ d, k = 0x6ED9EBA1;
            else if (i < 60)
                f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
            else
                f = b ^ c ^ d, k = 0xCA62C1D6;
            uint32_t t = ws_rotate(a, 5) + f + e + k + w[i];
            e = d, d = c, c = ws_rotate(b, 30), b = a, a = t;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++)
        digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

/* The value of Sec-WebSocket-Accept; `out` has room for 29 bytes. */
static inline void ws_accept(const char *key, char *out)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char text[128];
    uint8_t digest[21] = {0};
    int size = snprintf(text, sizeof text, "%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    ws_sha1((uint8_t *)text, (size_t)size, digest);
    for (int i = 0; i < 7; i++) {
        uint32_t three = (uint32_t)digest[3 * i] << 16 | digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int j = 0; j < 4; j++)
            *out++ = alphabet[three >> (18 - 6 * j) & 63];
    }
    out[-1] = '=';
    *out = 0;
}

/* A frame's head before a payload of that size; `out` has room for 14 bytes. A client's mask is zero: it must be there,
   and zero leaves the payload as it is. */
static inline int ws_head(uint8_t *out, int opcode, size_t size, int masked)
{
    uint8_t mask = masked ? 0x80 : 0;
    int n = 2;
    out[0] = (uint8_t)(0x80 | opcode);
    if (size < 126) {
        out[1] = mask | (uint8_t)size;
    } else if (size < 65536) {
        out[1] = mask | 126, out[2] = (uint8_t)(size >> 8), out[3] = (uint8_t)size, n = 4;
    } else {
        out[1] = mask | 127;
        for (int i = 0; i < 8; i++)
            out[2 + i] = (uint8_t)((uint64_t)size >> (56 - 8 * i));
        n = 10;
    }
    if (masked)
        memset(out + n, 0, 4), n += 4;
    return n;
}

/* The size of the head at `p` (0: not whole yet), and the payload's. */
static inline int ws_parse(const uint8_t *p, size_t there, uint64_t *payload)
{
    if (there < 2)
        return 0;
    size_t head = 2 + ((p[1] & 0x7F) == 126 ? 2 : (p[1] & 0x7F) == 127 ? 8 : 0) + (p[1] & 0x80 ? 4 : 0);
    if (there < head)
        return 0;
    switch (p[1] & 0x7F) {
    case 126:
        *payload = (uint64_t)p[2] << 8 | p[3];
        break;
    case 127:
        *payload = 0;
        for (int i = 0; i < 8; i++)
            *payload = *payload << 8 | p[2 + i];
        break;
    default:
        *payload = p[1] & 0x7F;
    }
    return (int)head;
}

static inline void ws_unmask(const uint8_t *mask, uint8_t *payload, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        payload[i] ^= mask[i & 3];
}

static inline void nonblocking(int fd)
{
    int one = 1;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline struct sockaddr_in local(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* Listens on 127.0.0.1; port 0 takes a free one, `*port` becomes the real one. */
static inline int listen_local(int *port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = local(*port);
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096))
        die("cannot listen: %s", strerror(errno));
    getsockname(fd, (struct sockaddr *)&address, &size);
    *port = ntohs(address.sin_port);
    return fd;
}

static inline int connect_local(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = local(port);
    if (connect(fd, (struct sockaddr *)&address, sizeof address))
        die("cannot connect to port %d: %s", port, strerror(errno));
    return fd;
}

/* Writes all of it, waiting where the kernel has no room. False: the peer is gone. */
static inline int write_all(int fd, const void *data, size_t size)
{
    const uint8_t *p = data;
    while (size) {
        ssize_t sent = send(fd, p, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN && errno != EINTR)
                return 0;
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            poll(&writable, 1, 1000);
            continue;
        }
        p += sent, size -= (size_t)sent;
    }
    return 1;
}

static inline int ws_send(int fd, int opcode, const void *payload, size_t size, int masked)
{
    uint8_t head[14];
    int n = ws_head(head, opcode, size, masked);
    return write_all(fd, head, (size_t)n) && write_all(fd, payload, size);
}

/* The server's answer to the upgrade request that ends in `request`; false: it is not whole, or none. */
static inline int ws_upgrade(int fd, char *request, int *msgpack)
{
    char *key, accept[32], answer[256];
    if (!strstr(request, "\r\n\r\n") || !(key = strcasestr(request, "sec-websocket-key:")))
        return 0;
    *msgpack = strcasestr(request, "application/msgpack") != NULL;
    key += 18;
    while (*key == ' ')
        key++;
    key[strcspn(key, " \r\n")] = 0;
    ws_accept(key, accept);
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    return write_all(fd, answer, (size_t)size);
}

static inline int ws_request(char *out, size_t room, const char *path, int port, int msgpack)
{
    return snprintf(out, room,
                    "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
                    "Content-Type: application/%s\r\n\r\n", path, port, msgpack ? "msgpack" : "json");
}

#endif
