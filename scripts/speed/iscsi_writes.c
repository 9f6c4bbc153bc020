/*
 * Writes over iSCSI by libiscsi, as many at a time as asked for: what iscsi-perf of that library is for reads.
 *
 *     iscsi_writes URL BYTES DEPTH SECONDS random|sequential apart|together
 *
 * prints how many writes a second have ended. Any error ends it with a message and code 1.
 *
 * The library sends each header and each data by a call of its own. Apart, each such call is a segment, which is what its users get, and
 * this program is at its end long before a target is. Together, all that one round of the library sends is held by the socket (TCP_CORK)
 * until the round ends.
 */
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

static struct iscsi_context *session;
static struct iscsi_url *url;
static unsigned char *data;
static uint32_t bytes, block, blocks;
static uint64_t pieces, next_piece, ended, in_flight, state = 0x5eed2026;
static int random_places, together, stopping;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, session ? iscsi_get_error(session) : strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static uint64_t place(void)
{
    if (!random_places)
        return next_piece++ % pieces;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % pieces;
}

static void begin(void);

static void end(struct iscsi_context *iscsi, int status, void *command_data, void *private_data)
{
    (void)iscsi;
    (void)private_data;
    if (status != SCSI_STATUS_GOOD)
        fail("a write failed");
    scsi_free_scsi_task(command_data);
    ended++;
    in_flight--;
    if (!stopping)
        begin();
}

static void begin(void)
{
    uint64_t lba = place() * blocks;

    if (!iscsi_write16_task(session, url->lun, lba, data, bytes, block, 0, 0, 0, 0, 0, end, NULL))
        fail("a write cannot be sent");
    in_flight++;
}

static void hold(int fd, int on)
{
    if (together && setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on) != 0)
        fail("TCP_CORK");
}

static void serve(int limit_ms)
{
    struct pollfd fd = { .fd = iscsi_get_fd(session), .events = iscsi_which_events(session) };

    if (poll(&fd, 1, limit_ms) < 0)
        fail("poll");
    hold(fd.fd, 1);
    if (iscsi_service(session, fd.revents) != 0)
        fail("the connection");
    hold(fd.fd, 0);
}

int main(int argc, char **argv)
{
    struct scsi_task *task;
    struct scsi_readcapacity16 *capacity;
    double start, limit;

    if (argc != 7) {
        fprintf(stderr, "usage: %s URL BYTES DEPTH SECONDS random|sequential apart|together\n", argv[0]);
        return 1;
    }
    session = iscsi_create_context("iqn.2026-11.io.reactor:bench-writes");
    if (!session)
        fail("no session");
    url = iscsi_parse_full_url(session, argv[1]);
    if (!url)
        fail(argv[1]);
    bytes = strtoul(argv[2], NULL, 10);
    limit = strtod(argv[4], NULL);
    random_places = strcmp(argv[5], "random") == 0;
    together = strcmp(argv[6], "together") == 0;
    data = malloc(bytes);
    if (!data)
        fail("memory");
    memset(data, 0x5a, bytes);
    iscsi_set_targetname(session, url->target);
    iscsi_set_session_type(session, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(session, ISCSI_HEADER_DIGEST_NONE);
    if (iscsi_full_connect_sync(session, url->portal, url->lun) != 0)
        fail("login");
    task = iscsi_readcapacity16_sync(session, url->lun);
    if (!task || task->status != SCSI_STATUS_GOOD || !(capacity = scsi_datain_unmarshall(task)))
        fail("READ CAPACITY(16)");
    block = capacity->block_length;
    blocks = bytes / block;
    pieces = (capacity->returned_lba + 1) / blocks;
    scsi_free_scsi_task(task);
    for (unsigned long depth = strtoul(argv[3], NULL, 10); depth > 0; depth--)
        begin();
    start = now();
    while (now() - start < limit)
        serve(100);
    printf("%.1f\n", ended / (now() - start));
    for (stopping = 1; in_flight > 0;)
        serve(1000);
    iscsi_logout_sync(session);
    iscsi_destroy_url(url);
    iscsi_destroy_context(session);
    free(data);
    return 0;
}
