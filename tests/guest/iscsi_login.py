"""Discovery, logging in by every way, and names."""

import ipaddress
import pathlib
import re
import shlex
import threading
import time

from disk import MIB, pattern
from harness import check, kernel_lines, note, run, wait_until
from iscsi_host import (
    ALICE,
    ALICE_FACE,
    AUTHORIZATION_FAILED,
    DATA_DIGEST,
    HEADER_DIGEST,
    INITIATOR,
    SECOND,
    V4,
    V6,
    chap,
    daemon_said,
    daemon_says,
    discover,
    discover_with,
    iscsiadm,
    login,
    logout_all,
    prepare,
    refused_login,
    sessions,
    the_new_session,
)
from iscsi_world import (
    FOURK,
    GROW,
    GUARD,
    MAIN,
    MOVED,
    MUTUAL,
    PASSWORD,
    PLACE,
    PREFIX,
    PRIVATE,
    SECRET,
    SHARED,
    STRICT,
    TARGET_PASSWORD,
    TARGET_USER,
    USER,
    WORLD,
    suite,
)
from jobs import fio
from target import Config, Reactor, binary
from udev import settle_udev

FOR_ALL = [MAIN, SECRET, MUTUAL, FOURK, GROW, GUARD, SHARED, STRICT]
# Who came by the loopback is told of what listens there, too.
PORTALS = sorted([(V4, 1), (V6, 1), (SECOND, 2)])


@suite.case
def discovery_lists_what_this_host_may_use():
    found = discover()
    check(sorted(found) == sorted(FOR_ALL), f"discovery shows {sorted(found)}")
    check(sorted(found[MAIN]) == PORTALS, f"portals of {MAIN}: {found[MAIN]}")


@suite.case
def discovery_over_ipv6():
    found = discover(V6).get(MAIN)
    check(found and sorted(found) == PORTALS, f"portals of {MAIN}: {found}")


@suite.case
def discovery_from_a_network_tells_of_no_loopback():
    found = discover(SECOND).get(MAIN)
    check(found == [(SECOND, 2)], f"portals of {MAIN}: {found}")


@suite.case
def discovery_shows_an_allowed_host_its_own():
    check(PRIVATE in discover(V4, ALICE_FACE), "the allowed initiator does not see its target")


@suite.case
def discovery_that_needs_a_secret():
    """By reload: discovery is refused from then on, and with the secret done."""
    WORLD.config.iscsi["discovery_chap"] = {"user": USER, "secret_file": "/tmp/target/alice"}
    WORLD.reload()
    try:
        wait_until("discovery refused", lambda: discover_with(V4, {}, succeed=False).code == AUTHORIZATION_FAILED)
        right = {"auth.authmethod": "CHAP", "auth.username": USER, "auth.password": PASSWORD}
        check(MAIN in discover_with(V4, right), "discovery with the secret does not show the main target")
        wrong = {**right, "auth.password": PASSWORD + "?"}
        done = discover_with(V4, wrong, succeed=False)
        check(done.code == AUTHORIZATION_FAILED, f"discovery with a wrong secret: exit {done.code}: {done.errors}")
    finally:
        del WORLD.config.iscsi["discovery_chap"]
        WORLD.reload()
    wait_until("discovery is for all again", lambda: discover_with(V4, {}, succeed=False).code == 0)


@suite.case
def host_that_is_not_allowed_is_refused():
    code, said = refused_login(PRIVATE)
    check(code == AUTHORIZATION_FAILED, f"login of an initiator that is not allowed: exit {code}: {said}")
    session = login(PRIVATE, face=ALICE_FACE)
    check(session.attribute("initiatorname") == ALICE, f"initiator {session.attribute('initiatorname')}")
    session.block().write(0, pattern(4096))


@suite.case
def unknown_target_is_refused():
    said = daemon_said()
    refused_login(PREFIX + "none")
    # Status class and detail of the login response (RFC 7143 §11.13.5).
    wait_until("Target Not Found", lambda: daemon_says("target not found (02/03)", said))


NONE = {HEADER_DIGEST: "None", DATA_DIGEST: "None"}
HEADER = {HEADER_DIGEST: "CRC32C", DATA_DIGEST: "None"}
DATA = {HEADER_DIGEST: "None", DATA_DIGEST: "CRC32C"}
BOTH = {HEADER_DIGEST: "CRC32C", DATA_DIGEST: "CRC32C"}


def look_at(session, block, digests=None):
    """Fails the case unless the digests are those that were asked for and data of all sizes comes back."""
    if digests:
        wanted = ["1" if digests[name] == "CRC32C" else "0" for name in (HEADER_DIGEST, DATA_DIGEST)]
        found = [session.connection("header_digest"), session.connection("data_digest")]
        check(found == wanted, f"header and data digests are {found}, asked for {wanted}")
    for index, size in enumerate((512, 4096, 8192, 65536, MIB)):
        block.write(index * MIB, pattern(size, index))
    for index, size in enumerate((512, 4096, 8192, 65536, MIB)):
        block.expect(index * MIB, pattern(size, index), f"{size} bytes")
    fio(block, ENGINE="libaio", RW="randrw", SIZES="512-64k", SIZE="1m")


@suite.variants(
    no_digest=(NONE,),
    header_digest=(HEADER,),
    data_digest=(DATA,),
    both_digests=(BOTH,),
)
def login_with(digests):
    session = login(MAIN, settings=digests)
    check(session.attribute("initiatorname") == INITIATOR, f"initiator {session.attribute('initiatorname')}")
    look_at(session, session.block(1), digests)


@suite.variants(
    no_digest=(NONE, "MD5"),
    header_digest=(HEADER, "SHA256"),
    data_digest=(DATA, "SHA256,MD5"),
    both_digests=(BOTH, None),
)
def login_with_chap_and(digests, algorithms):
    session = login(SECRET, settings={**chap(USER, PASSWORD, algorithms), **digests})
    look_at(session, session.block(), digests)


@suite.case
def login_with_mutual_chap():
    session = login(MUTUAL, settings=chap(USER, PASSWORD, mutual=(TARGET_USER, TARGET_PASSWORD)))
    look_at(session, session.block())


@suite.case
def target_that_proves_nothing_is_left():
    """It is the initiator that ends a login in which the target does not have the secret."""
    refused_login(MUTUAL, settings=chap(USER, PASSWORD, mutual=(TARGET_USER, TARGET_PASSWORD + "?")))


@suite.variants(
    no_secret=(None,),
    wrong_secret=(chap(USER, PASSWORD + "?"),),
    wrong_user=(chap("bob", PASSWORD),),
)
def chap_refuses(settings):
    code, said = refused_login(SECRET, settings=settings)
    check(code == AUTHORIZATION_FAILED, f"exit {code}: {said}")


@suite.case
def wrong_secret_is_slow_to_guess():
    """An answer to a wrong secret takes a second longer than one to a right one, and others need not wait meanwhile."""

    def seconds(secret, succeed):
        words = prepare(SECRET, settings=chap(USER, secret))
        started = time.monotonic()
        done = iscsiadm(*words, "--login", succeed=False)
        took = time.monotonic() - started
        check((done.code == 0) == succeed, f"login: exit {done.code}: {done.errors}")
        for session in sessions():
            session.logout()
        return took

    right = min(seconds(PASSWORD, True) for _ in range(2))
    wrong = min(seconds(PASSWORD + "?", False) for _ in range(2))
    note(f"right {right:.2f} s, wrong {wrong:.2f} s")
    check(wrong >= 1.0, f"a wrong secret is answered after {wrong:.2f} s, a right one after {right:.2f} s")
    end = time.monotonic() + 5
    guesses = 0
    other = login(MAIN)
    block = other.block()
    prepare(SECRET, settings=chap(USER, PASSWORD + "?"))
    guess = threading.Thread(target=lambda: iscsiadm("-m", "node", "-T", SECRET, "-p", V4, "--login", succeed=False))
    guess.start()
    while guess.is_alive() and time.monotonic() < end:
        block.write(0, pattern(4096, guesses))
        guesses += 1
    guess.join(60)
    check(guesses > 5, f"only {guesses} writes while a guess waited for its answer")


@suite.case
def target_that_requires_digests():
    refused_login(STRICT, settings=NONE)
    session = login(STRICT, settings={HEADER_DIGEST: "None,CRC32C", DATA_DIGEST: "None,CRC32C"})
    check(session.connection("header_digest") == session.connection("data_digest") == "1", "no digests are used")
    session.block().write(0, pattern(4096))


ISCSI = "node.session.iscsi."
SEGMENT = "node.conn[0].iscsi.MaxRecvDataSegmentLength"
SENDS = "node.conn[0].iscsi.MaxXmitDataSegmentLength"


@suite.variants(
    no_immediate_data=({ISCSI + "ImmediateData": "No"},),
    initial_r2t=({ISCSI + "InitialR2T": "Yes"},),
    initial_r2t_only=({ISCSI + "InitialR2T": "Yes", ISCSI + "ImmediateData": "No"},),
    small_bursts=(
        {
            ISCSI + "FirstBurstLength": 4096,
            ISCSI + "MaxBurstLength": 16384,
            SEGMENT: 8192,
            SENDS: 4096,
            ISCSI + "MaxOutstandingR2T": 4,
        },
    ),
    deep_queue=({"node.session.cmds_max": 1024, "node.session.queue_depth": 256},),
)
def transfers_with(settings):
    session = login(MAIN, settings={**settings, **DATA})
    for lun in (0, 1):
        block = session.block(lun)
        look_at(session, block)
        fio(block, ENGINE="libaio", SIZES="512-1m", DEPTH=64, SIZE="4m")


@suite.case
def login_over_ipv6():
    session = login(MAIN, V6)
    address = ipaddress.ip_address(session.connection("address"))
    check(address == ipaddress.ip_address("::1"), f"the connection is to {address}")
    look_at(session, session.block())


@suite.case
def printed_connect_lines_connect():
    """The lines are run as they stand: discovery, then a login by the record that it made."""
    lines = WORLD.target.connect_lines()
    discovery = [line for line in lines if " discovery " in line]
    logins = [line for line in lines if line.endswith("--login") and f" {MAIN} " in line]
    check(len(discovery) == 3 and len(logins) == 3, f"lines for three portals: {lines}")
    for line in discovery:
        run(*shlex.split(line))
    for line in logins:
        before = {session.name for session in sessions()}
        run(*shlex.split(line))
        the_new_session(before).block().write(0, pattern(4096))
    check(len(sessions()) == 3, f"{len(sessions())} sessions by three lines")


@suite.case
def names_in_dev_disk():
    """udev names the disk by portal, and by identity: the same by both portals, another for each logical unit."""
    first, second = login(MAIN), login(MAIN, SECOND)
    names = []
    for session, portal, group in ((first, V4, 1), (second, SECOND, 2)):
        check(session.attribute("tpgt") == str(group), f"portal group {session.attribute('tpgt')} by {portal}")
        for lun in (0, 1):
            block = session.block(lun)
            settle_udev()
            path = pathlib.Path(f"/dev/disk/by-path/ip-{portal}-iscsi-{MAIN}-lun-{lun}")
            check(path.exists() and path.resolve().name == block.name, f"{path} does not lead to {block.path}")
            names.append(block.attribute("device/wwid"))
            check(re.fullmatch(r"naa\.[36][0-9a-f]+", names[-1]), f"wwid {names[-1]}")
            link = pathlib.Path("/dev/disk/by-id") / f"wwn-0x{names[-1].removeprefix('naa.')}"
            check(link.exists(), f"{link} is not there: {sorted(link.parent.glob('*'))}")
    check(names[:2] == names[2:] and names[0] != names[1], f"names by both portals: {names}")


@suite.case
def names_survive_a_restart():
    names = []
    for _ in range(2):
        session = login(MAIN)
        names.append([session.block(lun).attribute("device/wwid") for lun in (0, 1)])
        session.logout()
        code, _ = WORLD.target.stop(30)
        check(code == 0, f"SIGTERM: exit {code}")
        WORLD.before()
    check(names[0] == names[1], f"names before and after: {names}")


@suite.case
def two_hosts_share_a_logical_unit():
    first = login(MAIN)
    first.block().write(0, pattern(65536, 7))
    second = login(MAIN, face=ALICE_FACE)
    check(second.attribute("initiatorname") == ALICE, "the second session is not of another initiator")
    second.block().expect(0, pattern(65536, 7), "through the second host")
    second.block().write(0, pattern(65536, 8))
    first.logout()
    second.block().expect(0, pattern(65536, 8), "after the first host has left")


@suite.case
def pings_hold_an_idle_session():
    timing = {"node.conn[0].timeo.noop_out_interval": 1, "node.conn[0].timeo.noop_out_timeout": 5}
    session = login(MAIN, settings=timing)
    block = session.block()
    since = len(kernel_lines())
    # Longer than the target's own interval: it pings as well.
    time.sleep(17)
    said = [line for line in kernel_lines()[since:] if "ping" in line.lower() or "detected conn error" in line]
    check(session.state() == "LOGGED_IN" and not said, f"the idle session was lost: {said}")
    block.write(0, pattern(4096))


def elsewhere(port):
    """What another server has: the target that has moved, at a port of its own."""
    return Config(
        memory_mib=48,
        bdevs=[{"name": "moved", "driver": "malloc", "block_size": 512, "size": 24 * MIB}],
        iscsi={"listen": [f"127.0.0.1:{port}"], "state": "state"},
        targets=[{"iqn": MOVED, "luns": [{"bdev": "moved"}]}],
    )


@suite.variants(temporary=(False,), permanent=(True,))
def login_is_sent_elsewhere_and_follows(permanent):
    """The kernel's disk is that of the other server. When that is lost, iscsid asks the portal of its record again, however it was sent away:
    the other server is somewhere else by then."""

    def send_to(port):
        redirect = {"address": f"127.0.0.1:{port}", "permanent": permanent}
        moved = {"iqn": MOVED, "luns": [{"bdev": "spare"}], "redirect": redirect}
        WORLD.config.targets = [target for target in WORLD.config.targets if target["iqn"] != MOVED] + [moved]
        WORLD.reload()

    place = PLACE / "elsewhere"
    place.mkdir(exist_ok=True)
    other = Reactor(binary(), place)
    try:
        other.start(elsewhere(3261))
        send_to(3261)
        wait_until("the target is told of", lambda: MOVED in discover())
        logout_all()
        session = login(MOVED)
        where = [session.connection(name) for name in ("address", "port", "persistent_port")]
        note(f"address, port and configured port: {where}")
        check(where[:2] == ["127.0.0.1", "3261"], f"the session is at {where}")
        block = session.block()
        check(block.size() == 24 * MIB, f"a disk of {block.size()} bytes: not that of the other server")
        look_at(session, block)
        check(session.state() == "LOGGED_IN", f"the session is {session.state()}")
        other.kill()
        wait_until("the loss is seen", lambda: session.state() != "LOGGED_IN")
        send_to(3262)
        other.start(elsewhere(3262))
        wait_until(
            "the session is where it was sent then",
            lambda: session.state() == "LOGGED_IN" and session.connection("port") == "3262",
            timeout_s=60,
        )
        block.write(0, pattern(MIB, 77))
        block.expect(0, pattern(MIB, 77), "by the new place")
        fio(block, ENGINE="libaio", RW="randrw", SIZES="512-64k", SIZE="1m")
        logout_all()
    except BaseException:
        other.show()
        raise
    finally:
        if other.alive():
            other.kill()
        WORLD.config.targets = [target for target in WORLD.config.targets if target["iqn"] != MOVED]
        WORLD.reload()
    wait_until("the target is told of no more", lambda: MOVED not in discover())


@suite.case
def many_sessions_come_and_go():
    for _ in range(5):
        for target in (MAIN, FOURK):
            login(target)
        for session in sessions():
            session.logout()
    login(MAIN).block().write(0, pattern(4096))
