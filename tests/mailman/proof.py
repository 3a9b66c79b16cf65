"""Proves, with a real Mailman in front and a foreign world behind, that Posthaste relays a list's mail once and whole.

Claims, in the order in which they are proved:

1. each member's copy of a posting arrives once, from the list's own bounce address, with our Received line on top;
2. the bounce of a refused member reaches Mailman's own LMTP port and is counted there, once, by its bounce runner;
3. kill -9 in the middle of the delivery loses nothing and doubles nothing;
4. kill -9 in the middle of the hand-over (of a posting with VERP: a transaction and a reverse-path per member) loses
   nothing and doubles at most what was in flight;
5. SIGTERM ends Posthaste with exit code 0.
"""

import argparse
import collections
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import listserver
import world
from listserver import wait_for

HOSTNAME = "relay.example.net"
EXPIRE_AFTER = 25

CONFIG = """\
hostname = "{hostname}"

[spool]
path = "{spool}"

[[listener]]
address = "127.0.0.1:{smtp_port}"

[[list_host]]
name = "lists"
networks = ["127.0.0.0/8"]
reverse_path_domains = ["lists.example.org"]
bounces_to = "lmtp://127.0.0.1:{lmtp_port}"

[dns]
servers = ["127.0.0.1:{dns_port}"]

[delivery]
port = {world_port}
allow_networks = ["127.0.0.0/8"]
retry = ["1s"]
expire_after = "{expire_after}s"

# A lifetime of seconds: a dead site must be probed within it, not every half a minute as with a lifetime of days.
[dispatch]
suspend_min = "1s"
suspend_max = "2s"

[bounce]
gather = "500ms"

[admin]
address = "127.0.0.1:{admin_port}"
"""


class Relay:
    """Posthaste as a child process."""

    def __init__(self, binary, directory, **ports):
        self.binary, self.directory = pathlib.Path(binary).resolve(), pathlib.Path(directory)
        self.admin_port = ports["admin_port"]
        self.config = self.directory / "posthaste.toml"
        self.process = None
        self.directory.mkdir(parents=True)
        text = CONFIG.format(hostname=HOSTNAME, spool=self.directory / "spool", expire_after=EXPIRE_AFTER, **ports)
        self.config.write_text(text)

    def start(self):
        log = open(self.directory / "posthaste.log", "ab")
        command = [self.binary, "serve", "--config", self.config]
        self.process = subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log)
        return wait_for("Posthaste to be ready", 20, self._is_ready)

    def _is_ready(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"Posthaste ended with exit code {self.process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.kill()


def subscribers(sites, count):
    """`count` members, dealt out to the sites in turn; one of the refusing site's is refused."""
    members = [f"member{n:04}@{sites[n % len(sites)].domain}" for n in range(count)]
    refusing = next(site for site in sites if site.manner == "refusing")
    return members + [f"refused@{refusing.domain}"]


class Proof:
    """The run: the world, Mailman and Posthaste, and what is claimed of them."""

    def __init__(self, options, directory):
        self.options = options
        self.world = world.World(world.sites(options.sites))
        self.manners = {site.domain: site.manner for site in self.world.sites}
        self.members = subscribers(self.world.sites, options.members)
        self.dead = {member for member in self.members if self._is_dead(member)}
        self.alive = set(self.members) - self.dead
        world_port, dns_port = self.world.start()
        ports = {name: world.free_port("127.0.0.1") for name in ("smtp_port", "lmtp_port", "admin_port")}
        self.relay = Relay(
            options.posthaste, directory / "posthaste", world_port=world_port, dns_port=dns_port, **ports
        )
        self.mailman = listserver.Mailman(
            directory / "mailman", ports["smtp_port"], ports["lmtp_port"], world.free_port("127.0.0.1"),
            batch=options.batch,
        )

    def _is_dead(self, member):
        return member.startswith("refused@") or self._manner(member) in ("gone", "null-mx", "unreachable")

    def _manner(self, member):
        return self.manners[member.partition("@")[2]]

    def run(self):
        self._set_up()
        self._every_copy_arrives_once()
        self._refusals_are_counted_by_the_list()
        self._a_kill_during_delivery_loses_nothing()
        self._a_kill_during_the_hand_over_loses_nothing()
        self._every_dead_address_was_reported_once_a_posting()
        self._nothing_went_astray()
        self._a_signal_ends_it_well()

    def close(self):
        self.mailman.stop()
        self.relay.stop()

    def _set_up(self):
        start = time.monotonic()
        self.mailman.create_list(self.members)
        self.mailman.start()
        self.relay.start()
        note(f"Mailman and Posthaste are up, {len(self.members)} members at {len(self.world.sites)} domains", start)

    def _every_copy_arrives_once(self):
        start = time.monotonic()
        self._post("<first@lists.example.org>")
        self._await_copies("<first@lists.example.org>")
        self._assert_once("<first@lists.example.org>")
        for copy in self.world.all_copies():
            self._assert_well_formed(copy)
            claim(copy.sender == listserver.BOUNCES, f"{copy.recipient} was sent to from {copy.sender}")
        proved("each member's copy arrived once", start, f"{len(self.alive)} copies")

    def _assert_well_formed(self, copy):
        header, _, body = copy.content.partition(b"\r\n\r\n")
        claim(header.startswith(b"Received:"), f"the top line of {copy.recipient}'s copy is not a Received line")
        claim(f"by {HOSTNAME}".encode() in header, f"our name is not in the Received line of {copy.recipient}'s copy")
        claim(b"List-Id: <news.lists.example.org>" in header, f"{copy.recipient}'s copy has lost its List-Id")
        claim(b"\r\n.a line that begins with a dot\r\n" in body, f"a dot was lost or doubled for {copy.recipient}")

    def _refusals_are_counted_by_the_list(self):
        start = time.monotonic()
        at_once = {member for member in self.dead if self._manner(member) != "unreachable"}
        wait_for("the bounces of the first posting", 20, lambda: at_once <= self._counted_bounces().keys())
        for address in at_once:
            events = [event for event in self.mailman.bounce_events() if event[0] == address]
            claim(len(events) == 1, f"{address} has {len(events)} bounce events after one posting")
            claim(HOSTNAME in (events[0][2] or ""), f"{address}'s bounce is not Posthaste's report: {events[0][2]}")
        scores = self.mailman.bounce_scores()
        claim(at_once <= set(scores), f"no bounce score for {at_once - set(scores)}")
        proved("refused members' bounces reached Mailman's LMTP port and were counted", start, f"{len(at_once)} members")

    def _a_kill_during_delivery_loses_nothing(self):
        start = time.monotonic()
        message_id = "<second@lists.example.org>"
        self.world.close()
        self._post(message_id)
        open_members = {member for member in self.alive if not self._is_shut(member)}
        self._await_copies(message_id, open_members)
        wait_for("a transaction that hangs after its content", 20, lambda: self.world.hanging > 0)
        # What was answered is recorded by then; what hangs has not been received. So not one copy may come twice.
        time.sleep(1)
        self.relay.kill()
        before = len(self.world.received(message_id))
        claim(before < len(self.alive), "nothing was left to deliver when Posthaste was killed")
        self.world.open()
        ready = self.relay.start()
        self._await_copies(message_id)
        self._assert_once(message_id)
        rest = len(self.alive) - before
        proved("kill -9 during the delivery lost nothing, doubled nothing", start, f"{rest} copies after {ready:.2f} s")

    def _is_shut(self, member):
        site = next(site for site in self.world.sites if site.domain == member.partition("@")[2])
        return site.manner == "hanging" or any(self.world.is_closed(address) for _, _, address in site.exchangers)

    def _a_kill_during_the_hand_over_loses_nothing(self):
        start = time.monotonic()
        message_id = "<third@lists.example.org>"
        self._post(message_id)
        wait_for("the first copy of the third posting", 20, lambda: self.world.received(message_id))
        self.relay.kill()
        killed, before = time.monotonic(), len(self.world.received(message_id))
        # Long enough for Mailman to run into a closed port.
        time.sleep(0.5)
        self.relay.start()
        self._await_copies(message_id)
        time.sleep(2)
        again = self.mailman.interrupted(message_id)
        claim(again, "Mailman had handed everything over before Posthaste was killed")
        doubled = self._doubled_beyond_flight(message_id, killed)
        claim(not doubled, f"doubled though not in flight: {sorted(doubled)[:5]}")
        for copy in self.world.all_copies():
            claim(copy.message_id != message_id or copy.sender == verp(copy.recipient), f"VERP was lost: {copy.sender}")
        twice = sum(1 for count in self.world.received(message_id).values() if count > 1)
        detail = f"killed after {before} copies, {again} recipients handed over again, {twice} in flight twice"
        proved("kill -9 during the hand-over lost nothing", start, detail)

    def _doubled_beyond_flight(self, message_id, killed):
        """Recipients with two copies, of which the first had been answered well before the kill, or came after it."""
        times = collections.defaultdict(list)
        for copy in self.world.all_copies():
            if copy.message_id == message_id:
                times[copy.recipient].append(copy.at)
        doubled = {recipient: min(at) for recipient, at in times.items() if len(at) > 1}
        return {recipient for recipient, first in doubled.items() if not killed - 0.5 < first <= killed + 0.05}

    def _every_dead_address_was_reported_once_a_posting(self):
        start = time.monotonic()
        wanted = collections.Counter({member: 3 for member in self.dead})
        wait_for("three bounces of every dead address", EXPIRE_AFTER + 30, lambda: self._counted_bounces() >= wanted)
        time.sleep(1)
        counted = self._counted_bounces()
        claim(counted == wanted, f"bounce events: {counted}, wanted {wanted}")
        scores = self.mailman.bounce_scores()
        claim(set(scores) == self.dead, f"bounce scores of {set(scores) ^ self.dead} are wrong")
        proved("every dead address was reported once a posting, and no other", start, f"{sum(wanted.values())} bounces")

    def _counted_bounces(self):
        """How many bounces of each address Mailman's bounce runner has processed."""
        return collections.Counter(address for address, processed, _ in self.mailman.bounce_events() if processed)

    def _nothing_went_astray(self):
        known = set(self.members)
        for copy in self.world.all_copies():
            claim(copy.recipient in known, f"the world got mail for {copy.recipient}")
            claim(copy.sender, f"a report went out into the world, to {copy.recipient}")
        queue = self.mailman.directory / "var" / "queue"
        waiting = [str(entry) for name in ("out", "retry", "shunt", "bad") for entry in (queue / name).glob("*")]
        claim(not waiting, f"Mailman still holds {waiting}")
        proved("nothing went astray, and Mailman's queues are empty", time.monotonic())

    def _a_signal_ends_it_well(self):
        start = time.monotonic()
        code = self.relay.terminate()
        claim(code == 0, f"Posthaste ended with exit code {code} on SIGTERM")
        proved("SIGTERM ended it with exit code 0", start)

    def _post(self, message_id):
        self.mailman.post(message_id)

    def _await_copies(self, message_id, members=None):
        members = self.alive if members is None else members
        try:
            wait_for(f"{len(members)} copies of {message_id}", 60, lambda: not self._missing(message_id, members))
        except TimeoutError as error:
            missing = sorted(self._missing(message_id, members))
            raise TimeoutError(f"{error}; {len(missing)} are missing, such as {missing[:5]}") from None

    def _missing(self, message_id, members):
        return members - self.world.received(message_id).keys()

    def _assert_once(self, message_id):
        time.sleep(1)
        doubled = {member: count for member, count in self.world.received(message_id).items() if count > 1}
        claim(not doubled, f"{len(doubled)} members got {message_id} more than once: {dict(list(doubled.items())[:5])}")


def verp(recipient):
    """The reverse-path that Mailman gives a recipient of its own."""
    local, _, domain = recipient.partition("@")
    return f"news-bounces+{local}={domain}@lists.example.org"


def claim(truth, otherwise):
    if not truth:
        raise AssertionError(otherwise)


def proved(what, start, detail=""):
    print(f"proved  {what}" + (f": {detail}" if detail else "") + f"  [{time.monotonic() - start:.1f} s]", flush=True)


def note(what, start):
    print(f"        {what}  [{time.monotonic() - start:.1f} s]", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posthaste", required=True, help="the program to prove")
    parser.add_argument("--members", type=int, default=300)
    parser.add_argument("--sites", type=int, default=40, help="domains that the members are spread over")
    parser.add_argument("--batch", type=int, default=50, help="Mailman's max_recipients")
    parser.add_argument("--keep", action="store_true", help="keep the directory of a run that went well")
    return parser.parse_args()


def main():
    options, start = arguments(), time.monotonic()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="posthaste-mailman-"))
    proof = Proof(options, directory)
    try:
        proof.run()
    except (AssertionError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"FAILED  {error}\n        logs and queues are kept in {directory}", file=sys.stderr)
        return 1
    finally:
        proof.close()
    if not options.keep:
        shutil.rmtree(directory)
    note("all of it", start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
