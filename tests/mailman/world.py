"""The receiving world, on loopback: a name server and one SMTP receiver per site.

It is written in Python, from other people's libraries, on purpose: a bug that Posthaste's own simulator shared with
Posthaste would not show here. A copy counts as received when the receiver has answered its final dot with 250.
"""

import asyncio
import collections
import dataclasses
import email
import socket
import threading
import time

import dnslib
import dnslib.server
from aiosmtpd.smtp import SMTP


@dataclasses.dataclass(frozen=True)
class Site:
    """A domain and the way its mail goes. `exchangers` are (preference, host, address)."""

    domain: str
    exchangers: tuple
    implicit: bool = False
    manner: str = "plain"


@dataclasses.dataclass(frozen=True)
class Copy:
    """One recipient's copy, as it was received."""

    message_id: str
    recipient: str
    sender: str
    host: str
    at: float
    content: bytes


# What the last sites of the list are like. Everything before them is plain.
MANNERS = ("refusing", "greylisting", "gone", "null-mx", "unreachable", "implicit-mx", "second-mx", "hanging", "tiny")
TLDS = ("com.example", "net.example", "org.example", "test")


def sites(count):
    """`count` sites: every manner once, the rest plain, of which three domains share their exchangers."""
    plain = count - len(MANNERS)
    return [_plain(n) for n in range(plain)] + [_special(plain + n, manner) for n, manner in enumerate(MANNERS)]


def _address(n):
    return f"127.1.0.{n + 1}"


def _domain(n):
    return f"site{n:02}.{TLDS[n % len(TLDS)]}"


def _plain(n):
    home = n if n >= 3 else 0
    return Site(_domain(n), ((10, f"mx.{_domain(home)}", _address(home)),))


def _special(n, manner):
    domain, address = _domain(n), _address(n)
    match manner:
        case "gone":
            return Site(domain, (), manner=manner)
        case "null-mx":
            return Site(domain, ((0, ".", None),), manner=manner)
        case "unreachable":
            # Nobody listens there: every connection is refused at once.
            return Site(domain, ((10, f"mx.{domain}", "127.3.0.1"),), manner=manner)
        case "implicit-mx":
            return Site(domain, ((0, domain, address),), implicit=True, manner=manner)
        case "second-mx":
            dead = (10, f"mx1.{domain}", "127.3.0.2")
            return Site(domain, (dead, (20, f"mx2.{domain}", address)), manner=manner)
        case _:
            return Site(domain, ((10, f"mx.{domain}", address),), manner=manner)


class Names(dnslib.server.BaseResolver):
    """Answers for the sites; NXDOMAIN for all else. `SOA` in the authority section makes negative answers cacheable."""

    def __init__(self, sites):
        self.records = collections.defaultdict(list)
        for site in sites:
            for preference, host, address in site.exchangers:
                if not site.implicit:
                    self.records[site.domain, "MX"].append(dnslib.MX(host, preference))
                if address:
                    self.records[host, "A"] = [dnslib.A(address)]
        self.names = {name for name, _ in self.records}

    def resolve(self, request, handler):
        reply = request.reply()
        name = str(request.q.qname).rstrip(".").lower()
        found = self.records.get((name, dnslib.QTYPE[request.q.qtype]), [])
        for data in found:
            reply.add_answer(dnslib.RR(request.q.qname, request.q.qtype, rdata=data, ttl=60))
        if not found:
            reply.add_auth(dnslib.RR("example", dnslib.QTYPE.SOA, rdata=dnslib.SOA("ns.example", "root.example"), ttl=5))
            reply.header.rcode = dnslib.RCODE.NOERROR if name in self.names else dnslib.RCODE.NXDOMAIN
        return reply


class Receiver:
    """One site's receiver: an aiosmtpd handler with the site's manners."""

    def __init__(self, world, host, manner):
        self.world, self.host, self.manner = world, host, manner
        self.greylisted = {}

    async def handle_RCPT(self, server, session, envelope, address, options):
        reply = self._refusal(session, envelope, address)
        if reply:
            return reply
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    def _refusal(self, session, envelope, address):
        if self.manner == "refusing" and address.startswith("refused"):
            return "550 5.1.1 User unknown"
        if self.manner == "greylisting" and self._is_early(session, envelope, address):
            return "451 4.7.1 Greylisted, come back later"
        if self.manner == "tiny" and len(envelope.rcpt_tos) >= 2:
            return "452 4.5.3 Too many recipients"
        if self.world.is_closed(self.host):
            return "451 4.3.2 System not accepting network messages"
        return None

    def _is_early(self, session, envelope, address):
        first = self.greylisted.setdefault((session.peer[0], envelope.mail_from, address), time.monotonic())
        return time.monotonic() < first + self.world.greylist_seconds

    async def handle_DATA(self, server, session, envelope):
        if self.manner == "hanging":
            await self.world.hang()
        await asyncio.sleep(self.world.delay_seconds)
        self.world.receive(self.host, envelope)
        return "250 2.0.0 Ok"


class World:
    """The running world. `start`, then look at `copies`; `close` and `open` shut half of the sites for a while."""

    def __init__(self, sites, greylist_seconds=2.0, delay_seconds=0.02):
        self.sites = sites
        self.greylist_seconds = greylist_seconds
        self.delay_seconds = delay_seconds
        self.copies = []
        self.hanging = 0
        self._gate = threading.Event()
        self._gate.set()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()

    def start(self):
        """Binds everything; returns (port of the receivers, port of the name server)."""
        hosts = {host[2]: site.manner for site in self.sites for host in site.exchangers if host[2]}
        hosts = {address: manner for address, manner in hosts.items() if address.startswith("127.1.")}
        smtp_port = self._serve(hosts)
        names = Names(self.sites)
        dns_port = free_port("127.0.0.1")
        for tcp in (False, True):
            quiet = dnslib.server.DNSLogger(log="-request,-reply,-truncated,-error,-recv,-send")
            dnslib.server.DNSServer(names, "127.0.0.1", dns_port, tcp=tcp, logger=quiet).start_thread()
        return smtp_port, dns_port

    def _serve(self, hosts):
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        port = free_port("127.1.0.1")
        for address, manner in hosts.items():
            asyncio.run_coroutine_threadsafe(self._listen(address, port, manner), self._loop).result(10)
        return port

    async def _listen(self, address, port, manner):
        def session():
            receiver = Receiver(self, address, manner)
            receiver.greylisted = seen
            return SMTP(receiver, hostname=f"{address}.receiver", enable_SMTPUTF8=True, loop=self._loop)

        seen = {}
        await self._loop.create_server(session, address, port, backlog=256)

    def receive(self, host, envelope):
        content = envelope.content
        message_id = email.message_from_bytes(content)["message-id"]
        with self._lock:
            for recipient in envelope.rcpt_tos:
                self.copies.append(
                    Copy(message_id, recipient, envelope.mail_from, host, time.monotonic(), content)
                )

    def received(self, message_id):
        """How often each recipient got a message."""
        with self._lock:
            return collections.Counter(copy.recipient for copy in self.copies if copy.message_id == message_id)

    def all_copies(self):
        with self._lock:
            return list(self.copies)

    def close(self):
        """Every second plain site defers from now on, and the hanging one swallows content without answering."""
        self._gate.clear()

    def open(self):
        self._gate.set()

    def is_closed(self, host):
        return not self._gate.is_set() and int(host.rsplit(".", 1)[1]) % 2 == 0 and not self._hangs(host)

    def _hangs(self, host):
        return any(host == exchanger[2] and site.manner == "hanging" for site in self.sites for exchanger in site.exchangers)

    async def hang(self):
        """Waits while the world is closed. A connection that dies meanwhile cancels this, and nothing is received."""
        self.hanging += 1
        try:
            while not self._gate.is_set():
                await asyncio.sleep(0.02)
        finally:
            self.hanging -= 1


def free_port(address):
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
