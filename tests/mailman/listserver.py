"""GNU Mailman 3 as its users run it: the real master, its runners, its command line, its LMTP port and its REST API.

Only the polling intervals differ from a normal installation, so that a run takes a minute instead of an hour.
"""

import base64
import json
import os
import pathlib
import smtplib
import sqlite3
import subprocess
import sys
import time
import urllib.request

CONFIG = """\
[mailman]
layout: here
site_owner: owner@lists.example.org

[paths.here]
var_dir: {var}

[mta]
incoming: mailman.mta.null.NullMTA
outgoing: mailman.mta.deliver.deliver
smtp_host: 127.0.0.1
smtp_port: {smtp_port}
lmtp_host: 127.0.0.1
lmtp_port: {lmtp_port}
max_recipients: {batch}
# Mailman counts a posting before it sends it, from 1: the third of a list is its number 4, and gets VERP.
verp_delivery_interval: 4

[webservice]
hostname: 127.0.0.1
port: {rest_port}
workers: 1
admin_user: restadmin
admin_pass: restpass

[dmarc]
# Never fetched: the list does not mitigate. Said here so that a change of that cannot reach for the network.
org_domain_data_url: file:///dev/null
resolver_timeout: 1s
resolver_lifetime: 1s
"""

# Seconds between looks at the queue. Runners that a posting does not need are not started.
POLLS = {"in": 0.1, "pipeline": 0.1, "out": 0.1, "retry": 1, "bounces": 0.2, "virgin": 1, "lmtp": 1, "rest": 1}
IDLE = ("archive", "command", "digest", "task", "nntp")

# What `mailman shell` applies to the list: no moderation, no notices (they would be mail too), bounces counted.
SETTINGS = """\
def apply(mlist):
    from mailman.config import config
    from mailman.interfaces.action import Action
    from mailman.interfaces.archiver import ArchivePolicy
    from mailman.interfaces.bounce import UnrecognizedBounceDisposition
    from mailman.interfaces.mailinglist import DMARCMitigateAction
    mlist.default_nonmember_action = Action.accept
    mlist.archive_policy = ArchivePolicy.never
    mlist.dmarc_mitigate_action = DMARCMitigateAction.no_mitigation
    mlist.process_bounces = True
    mlist.bounce_score_threshold = 100
    mlist.bounce_notify_owner_on_disable = False
    mlist.bounce_notify_owner_on_bounce_increment = False
    mlist.forward_unrecognized_bounces_to = UnrecognizedBounceDisposition.discard
    mlist.max_message_size = 0
    mlist.max_num_recipients = 0
    config.db.commit()
"""

ADDRESS = "news@lists.example.org"
LIST_ID = "news.lists.example.org"
BOUNCES = "news-bounces@lists.example.org"


class Mailman:
    """One installation in a directory of its own."""

    def __init__(self, directory, smtp_port, lmtp_port, rest_port, batch=50):
        self.directory = pathlib.Path(directory)
        self.lmtp_port, self.rest_port = lmtp_port, rest_port
        self.bin = pathlib.Path(sys.executable).parent
        self.config = self.directory / "mailman.cfg"
        self.master = None
        self.directory.mkdir(parents=True)
        self.config.write_text(self._config(smtp_port, batch))

    def _config(self, smtp_port, batch):
        text = CONFIG.format(
            var=self.directory / "var", smtp_port=smtp_port, lmtp_port=self.lmtp_port,
            rest_port=self.rest_port, batch=batch,
        )
        text += "".join(f"\n[runner.{name}]\nsleep_time: {poll}s\n" for name, poll in POLLS.items())
        return text + "".join(f"\n[runner.{name}]\nstart: no\n" for name in IDLE)

    def _command(self, *arguments):
        # Root is what a container or a CI runner is; Mailman asks to be told that this is meant.
        command = [self.bin / "mailman", "--run-as-root", "-C", self.config, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self.directory)}
        subprocess.run(command, check=True, cwd=self.directory, env=environment, stdout=subprocess.DEVNULL)

    def create_list(self, members):
        """Creates the list and subscribes everybody, before the runners start: sqlite knows one writer."""
        (self.directory / "members.txt").write_text("".join(f"{member}\n" for member in members))
        (self.directory / "listsettings.py").write_text(SETTINGS)
        self._command("create", "-d", "--language", "en", ADDRESS)
        self._command("addmembers", "--no-welcome-msg", self.directory / "members.txt", ADDRESS)
        self._command("withlist", "-r", "listsettings.apply", "-l", ADDRESS)

    def start(self):
        log = open(self.directory / "master.log", "wb")
        command = [self.bin / "master", "-C", self.config]
        self.master = subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log)
        wait_for("Mailman's LMTP port and REST API", 60, self._is_up)

    def _is_up(self):
        try:
            smtplib.LMTP("127.0.0.1", self.lmtp_port, timeout=5).quit()
            self.rest("system/versions")
        except OSError:
            return False
        return True

    def stop(self):
        if self.master is None:
            return
        self.master.terminate()
        try:
            self.master.wait(20)
        except subprocess.TimeoutExpired:
            self.master.kill()

    def post(self, message_id, text="Dear reader,\n\n.a line that begins with a dot\n"):
        """Hands a posting to Mailman's LMTP port, as an inbound MTA does."""
        message = (
            f"From: Editor <editor@lists.example.org>\r\nTo: {ADDRESS}\r\nSubject: News {message_id}\r\n"
            f"Message-ID: {message_id}\r\nDate: Tue, 24 Nov 2026 08:00:00 +0000\r\n"
            f"Content-Type: text/plain; charset=us-ascii\r\n\r\n{text}".replace("\r\n", "\n").replace("\n", "\r\n")
        )
        with smtplib.LMTP("127.0.0.1", self.lmtp_port, timeout=30) as lmtp:
            lmtp.sendmail("editor@lists.example.org", [ADDRESS], message)

    def rest(self, path):
        """A resource of the REST API, which is what Postorius and the administrator see."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}/3.1/{path}")
        token = base64.b64encode(b"restadmin:restpass").decode()
        request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def bounce_scores(self):
        """Address -> bounce score, of the members that have one."""
        members = self.rest(f"lists/{LIST_ID}/roster/member")["entries"]
        return {member["email"]: member["bounce_score"] for member in members if member.get("bounce_score")}

    def bounce_events(self):
        """(address, processed, Message-ID of the report) of every event the bounce runner registered. There is no
        REST resource for them, so the database is read, without writing."""
        path = self.directory / "var" / "data" / "mailman.db"
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as database:
            rows = database.execute("SELECT email, processed, message_id FROM bounceevent").fetchall()
        return [(address, bool(processed), message_id) for address, processed, message_id in rows]

    def interrupted(self, message_id):
        """How many recipients of a posting Mailman could not hand over at once, and kept for later."""
        log = (self.directory / "var" / "logs" / "smtp.log").read_text()
        return sum(1 for line in log.splitlines() if message_id in line and "failed with code 4" in line)


def wait_for(what, seconds, condition):
    """Waits until `condition` holds; returns how long that took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() > start + seconds:
            raise TimeoutError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.05)
    return time.monotonic() - start
