"""The table of all log messages at WARNING and above: for each format string the event's name, the names of its
values, and the remedy. A test checks that the table and the code agree.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Event(NamedTuple):
    """A kind of log record."""

    name: str
    says: str  # the format string with which the code logs it
    values: tuple[str, ...]  # a name for each argument of the format string
    do: str  # what an operator should do


_ALL: Final = (
    Event(
        name="bug",
        says="the daemon ends on a bug",
        values=(),
        do="It is started again by systemd. Report the trace above, with `billing info` and the journal of the "
        "minutes before.",
    ),
    Event(
        name="supervisor_bug",
        says="the supervisor ends on a bug",
        values=(),
        do="It is started again by systemd. Report the trace above, with `billing info` and the journal of the "
        "minutes before.",
    ),
    Event(
        name="log_dropped",
        says="%d log records were dropped: nobody read them",
        values=("count",),
        do="Look at what reads the daemon's standard error (journald, or the program behind the pipe): it had stopped, "
        "and 1 MiB of records waited for it. Billing went on.",
    ),
    Event(
        name="daemon_ends",
        says="the daemon ends with exit code %d: %s",
        values=("code", "error"),
        do="After 65, 74 and 78 nothing is started again by itself (docs/operating.md, exit codes): mend what is "
        "named, then systemctl start billing.",
    ),
    Event(
        name="shard_silent",
        says="shard %d is silent: it has answered nothing for %d s; its process is %d",
        values=("shard", "silent_s", "pid"),
        do="Under systemd the watchdog ends the daemon and starts it again. Else see what the process waits for "
        "(cat /proc/PID/stack, py-spy dump --pid PID), and kill -9 it: its shard is served again from its "
        "journal, nothing is lost.",
    ),
    Event(
        name="disk_stuck",
        says="shard %d has had a batch at its disk for %d s",
        values=("shard", "stuck_s"),
        do="Look at the disk (dmesg, iostat): whoever asked for a change waits for it, and nothing that was "
        "answered is at stake.",
    ),
    Event(
        name="supervisor_ends",
        says="the supervisor ends: %s",
        values=("error",),
        do="If the disk failed, look at it (dmesg, SMART): after 74 nothing is started again by itself; systemctl "
        "start billing, once it is mended.",
    ),
    Event(
        name="host_displaced",
        says="this host gives its shards up: %s",
        values=("error",),
        do="Another host took over since this one was not heard of: look at this host and its way to the log's "
        "servers (billing cluster status). It is started again by systemd and stands by.",
    ),
    Event(
        name="no_spare_worker",
        says="the worker of shard %d cannot be started ahead of time: %s",
        values=("shard", "error"),
        do="This host stands by, and a takeover would meet the same: see to its memory, processes and descriptors "
        "(systemctl status billing).",
    ),
    Event(
        name="shard_taken",
        says="shard %d is served by %s now: its worker here ends",
        values=("shard", "node"),
        do="This host was not heard of for a grant of time: look at it and at its way to the log's servers (billing "
        "cluster status). Nothing is lost; it asks for shards again.",
    ),
    Event(
        name="no_spare_for_shards",
        says="no worker can be started ahead of time: %s",
        values=("error",),
        do="The next shard that this host takes over meets the same: see to its memory, processes and descriptors "
        "(systemctl status billing).",
    ),
    Event(
        name="shares_unseen",
        says="who serves which shard cannot be looked at: %s",
        values=("error",),
        do="This host serves what it has for as long as the log grants it time. See to the log's servers and the "
        "way to them (billing cluster status).",
    ),
    Event(
        name="shard_not_given_back",
        says="that shard %d was given back could not be told: %s",
        values=("shard", "error"),
        do="Another host takes it over once its time has run out, some seconds later than usual. See to the log's "
        "servers.",
    ),
    Event(
        name="shard_ahead_of_clock",
        says="shard %d was served up to an instant %.3f s ahead of this host's clock: it waits until then",
        values=("shard", "ahead_s"),
        do="The clock of this host, or of the one that served the shard before, is wrong: chronyc tracking on both. "
        "Stop the daemon on this host, and another one tries.",
    ),
    Event(
        name="shard_unreached",
        says="shard %d cannot be reached at %s: %s",
        values=("shard", "address", "error"),
        do="This host refuses what it would pass on to that shard; the host that serves it answers. See to the way "
        "from this host to that address (cluster.listen and cluster.advertise there, a firewall).",
    ),
    Event(
        name="link_refused",
        says="shard %d refused a link from %s: %s",
        values=("shard", "peer", "reason"),
        do="A host of another cluster, of another version or without the right cluster.secret_file or certificate "
        "dials this one: compare these on both. If it is no host of yours, let cluster.listen be reached from "
        "your hosts only.",
    ),
    Event(
        name="link_certificate_unfit",
        says="the new certificate of the links is not used, the former one goes on: %s",
        values=("error",),
        do="See that cluster.tls_cert, tls_key and tls_ca belong together; nothing is to be done where they were being "
        "written at that moment. They are read again at the next link.",
    ),
    Event(
        name="link_not_wanted",
        says="no link to shard %d: %s",
        values=("shard", "reason"),
        do="The host that serves the shard does not take this host's links: compare cluster.secret_file, the "
        "certificates and the version of both.",
    ),
    Event(
        name="host_gives_up_by_clock",
        says="this host gives its shards up because of its clock: %s",
        values=("error",),
        do="Another host takes over, if its clock is good. chronyc tracking; compare with the other hosts. Once the "
        "clock is right, this host stands by and serves again when it is its turn.",
    ),
    Event(
        name="clock_unfit",
        says="the clock of this host is unfit to serve by: %s; %d ms are allowed",
        values=("error", "error_ms_max"),
        do="It takes no shard over. chronyc tracking; compare with the other hosts: where all say so, the host that "
        "served last was wrong, and clock.error_ms_max = 0 accepts the step that a takeover makes.",
    ),
    Event(
        name="clock_doubtful",
        says="the clock of this host is doubtful: %s; it may be wrong by %d ms",
        values=("error", "error_ms_max"),
        do="At that limit it gives its shards up. chronyc tracking: a time server that is near, and polled often.",
    ),
    Event(
        name="clock_unkept",
        says="nobody keeps the clock of this host, as far as the kernel says",
        values=(),
        do="Run chronyd (or another time service) on every host: how wrong this clock is, nobody can say. In a unit "
        "of systemd's, ProtectClock=yes hides the answer: print the unit anew with `billing install-unit`.",
    ),
    Event(
        name="data_directory",
        says="about the place of the log: %s",
        values=("warning",),
        do="Put daemon.data_dir on a disk of this host's own: what is in memory or on a network is not what durable "
        "means here. Where the log is on servers, look there at what is named: it cannot be seen from this host, "
        "or is for trying only. Where the ballast was dropped, free some space.",
    ),
    Event(
        name="wall_clock_behind",
        says="wall time is %.1f s behind the last journalled instant: billing goes on from that instant; "
        "check the clock of this host",
        values=("behind_s",),
        do="timedatectl or chronyc tracking. If the clock is right, the data directory comes from a host whose "
        "clock was not.",
    ),
    Event(
        name="wall_clock_stepped",
        says="the wall clock was stepped by %.3f s; billing time is bent towards it by at most %d ppm",
        values=("step_s", "ppm"),
        do="Nobody was charged for it. See that one time service runs on this host, and that it slews.",
    ),
    Event(
        name="wall_clock_stepped_away",
        says="the wall clock was stepped by %.3f s while the daemon was down; billing time went by the boot clock",
        values=("step_s",),
        do="Nobody was charged for it; billing time is bent towards the clock. See that the clock is right, and who "
        "set it.",
    ),
    Event(
        name="few_descriptors",
        says="only %d connections fit into the %d file descriptors of a worker; rpc.connections_max asks for %d",
        values=("connections", "descriptors", "connections_max"),
        do="Raise LimitNOFILE= (ulimit -Hn) of the daemon, or lower rpc.connections_max, or cutoff.concurrency: each "
        "endpoint of cutoffs and restores has two descriptors for each of these calls.",
    ),
    Event(
        name="turned_away",
        says="connections turned away: %d, the last one from %s: %s",
        values=("connections", "origin", "reason"),
        do="See what runs there: clients keep connections and need few. Else raise rpc.connections_max or "
        "rpc.connections_per_origin_max.",
    ),
    Event(
        name="nothing_accepted",
        says="no connection can be accepted for %g s: %s",
        values=("rest_s", "error"),
        do="Raise LimitNOFILE= (ulimit -Hn) of the daemon, or lower rpc.connections_max; and see who opens so many "
        "connections.",
    ),
    Event(
        name="handshake_bug",
        says="a new connection met a bug",
        values=(),
        do="Only that connection ended. Report the trace above, with `billing info`.",
    ),
    Event(
        name="busy",
        says="requests refused: %d; as many as may be are in flight: %d",
        values=("times", "in_flight"),
        do="Look at the disk (billing_sync_seconds) and at who asks so much. More workers take more; "
        "rpc.in_flight_max is memory, about 1 KiB each.",
    ),
    Event(
        name="shard_held",
        says="shard %d is held until a reload or a restart: %s",
        values=("shard", "reason"),
        do="Its users get UNAVAILABLE. Damaged data: billing doctor on a copy. A failed disk: mend it. Then "
        "systemctl reload billing.",
    ),
    Event(
        name="shard_held_for_now",
        says="shard %d is held and tried again in %g s: %s",
        values=("shard", "delay_s", "reason"),
        do="Its users get UNAVAILABLE. The lines before say why it ends. systemctl reload billing tries it at once.",
    ),
    Event(
        name="shards_unchanged",
        says="the shards stay as they are: %s",
        values=("error",),
        do="The new shards could not listen at the host of rpc.listen. Give it room (descriptors, ports), then "
        "reload again.",
    ),
    Event(
        name="worker_ended",
        says="the worker of shard %d ended with %d; restarted in %g s",
        values=("shard", "code", "delay_s"),
        do="Once is harmless: it recovers from its journal. Again and again: the lines before say why; negative "
        "codes are signals (-9: memory?).",
    ),
    Event(
        name="worker_unstarted",
        says="the worker of shard %d cannot be started, and is tried again: %s",
        values=("shard", "error"),
        do="Its users are answered UNAVAILABLE, and their cutoffs wait. See to the processes, descriptors and memory "
        "of the service (systemctl status billing), or to its Python, if that has gone or moved: then restart.",
    ),
    Event(
        name="worker_failed",
        says="shard %d: %s",
        values=("shard", "reason"),
        do="billing shards shows what became of it.",
    ),
    Event(
        name="recovery_warning",
        says="shard %d was recovered, and this was found: %s",
        values=("shard", "warning"),
        do="Nothing at once: the shard serves. A file system in memory or on a network is not what durable means "
        "here. A torn tail was never answered; a snapshot that was set aside is evidence, look at the disk. "
        "Where the ballast was dropped, free some space.",
    ),
    Event(
        name="shard_waits_for_room",
        says="shard %d waits for its journal: %s",
        values=("shard", "reason"),
        do="Free some space on the file system of daemon.data_dir, or raise max_bytes of the stream that is named; "
        "the shard goes on by itself.",
    ),
    Event(
        name="worker_killed",
        says="shard %d did not stop within %d s and is killed",
        values=("shard", "seconds"),
        do="Nothing that was answered is lost; the next start replays its journal. Report it if it happens again.",
    ),
    Event(
        name="disk_full",
        says="shard %d: %s; commands are refused until there is",
        values=("shard", "reason"),
        do="Free some space on the file system of daemon.data_dir, or raise max_bytes of the stream that is named; "
        "it goes on by itself.",
    ),
    Event(
        name="batch_withdrawn",
        says="shard %d: %s; the batch under way is withdrawn",
        values=("shard", "reason"),
        do="Raise max_bytes of the stream that the reason names. The callers were told that nothing was applied; "
        "the worker begins anew and goes on by itself.",
    ),
    Event(
        name="disk_has_room",
        says="shard %d: there is room for the journal again",
        values=("shard",),
        do="Nothing; but see to it that there is more.",
    ),
    Event(
        name="start_waits_for_room",
        says="the daemon cannot be started: %s; it is tried every %g s",
        values=("error", "every_s"),
        do="If a disk is full, free some space on the file system of daemon.data_dir; if the log cannot be reached, "
        "`billing cluster check` says why. It goes on by itself.",
    ),
    Event(
        name="map_waits_for_room",
        says="the map cannot be written: %s; it is tried every %g s",
        values=("error", "every_s"),
        do="If a disk is full, free some space on the file system of daemon.data_dir; if the log is full or cannot be "
        "reached, `billing cluster check` says why. Moves and starts of workers wait for it.",
    ),
    Event(
        name="move_undecided",
        says="the move of bucket %d is not decided yet: %s",
        values=("bucket", "reason"),
        do="See why the log cannot be reached: the users of this bucket wait until it says what was decided. All "
        "others go on.",
    ),
    Event(
        name="move_given_up",
        says="bucket %d was not moved to shard %d: %s",
        values=("bucket", "to_shard", "reason"),
        do="The bucket is served where it was. billing explain-move says what stands against it; the rebalancer "
        "tries again.",
    ),
    Event(
        name="cutoff_endpoint_shut",
        says="%s takes no calls (%s) and is probed; users who wait: %d",
        values=("endpoint", "error", "waiting"),
        do="curl it from this host. Nothing is lost: cutoffs are sent until they have their 2xx, but machines run "
        "meanwhile.",
    ),
    Event(
        name="cutoff_endpoint_still_shut",
        says="%s has taken no calls for %d s (%s) and is probed; users who wait: %d",
        values=("endpoint", "seconds", "error", "waiting"),
        do="As for cutoff_endpoint_shut. Once a minute while it lasts.",
    ),
    Event(
        name="notice_endpoint_shut",
        says="%s takes no notices (%s) and is probed; users who wait: %d",
        values=("endpoint", "error", "waiting"),
        do="curl it from this host. Nothing is lost: notices are sent until they have their 2xx. No cutoff waits "
        "for them.",
    ),
    Event(
        name="notice_endpoint_still_shut",
        says="%s has taken no notices for %d s (%s) and is probed; users who wait: %d",
        values=("endpoint", "seconds", "error", "waiting"),
        do="As for notice_endpoint_shut. Once a minute while it lasts.",
    ),
    Event(
        name="notice_endpoint_slow",
        says="%s answered no notice in time (cutoff.timeout_s is %g): notices may take %g s now",
        values=("endpoint", "timeout_s", "patience_s"),
        do="Let notify.url take what it is told and answer at once, or raise cutoff.timeout_s to what it needs.",
    ),
    Event(
        name="cutoff_endpoint_slow",
        says="%s answered nobody in time (cutoff.timeout_s is %g): calls may take %g s now",
        values=("endpoint", "timeout_s", "patience_s"),
        do="Let the endpoint answer before the machine is off, or raise cutoff.timeout_s to what it needs.",
    ),
    Event(
        name="cutoffs_held",
        says="overdue cutoffs that wait: %d; look at them, then billing cutoffs release",
        values=("cutoffs",),
        do="More are overdue than cutoff.hold_above. Check this host's clock and which data directory this is; then "
        "release them.",
    ),
    Event(
        name="cutoffs_held_after_restore",
        says="restored from a backup: overdue cutoffs that wait for a release: %d",
        values=("cutoffs",),
        do="The backup knows nothing of top-ups since it was made: book those first, look at billing cutoffs, then "
        "release. They wait at every start until then.",
    ),
    Event(
        name="cutoff_burst",
        says="cutoffs that fall due in the second of %s: %d; the endpoint was last seen to take %d a second, "
        "so the last will be some %.1f s late",
        values=("second", "cutoffs", "takes", "late_s"),
        do="Raise what the endpoint takes, or cutoff.concurrency (systemctl reload billing), before that second.",
    ),
    Event(
        name="cutoff_class_gone",
        says="accounts in cutoff classes that the configuration does not have: %d; the default serves them",
        values=("accounts",),
        do="Put [cutoff.class.NAME] back and restart, or move the accounts with billing class; billing doctor names "
        "the classes, billing accounts --class NAME lists who is in one.",
    ),
    Event(
        name="second_opinion_failed",
        says="the second opinion begins again",
        values=(),
        do="Cutoffs are not concerned. Report the trace above.",
    ),
    Event(
        name="wheel_mismatch",
        says="accounts that were not filed for what is coming for them: %d; they are now",
        values=("accounts",),
        do="It is a bug that would have missed cutoffs. Keep the journal and a backup of the data directory of this "
        "hour, and report it.",
    ),
    Event(
        name="follower_remark",
        says="the %s of shard %d: %s",
        values=("what", "shard", "remark"),
        do="Balances and cutoffs are not concerned. Its file was removed, damaged, or of an older version, and was "
        "made anew of what there is. What is missing is said in each answer that misses it. A file under "
        "damaged-… or ahead-… is evidence: remove it once nobody needs it. Where former shards of a bucket are "
        "named: they are gone, or were restored from an older copy; look at them in `billing shards`, and tell "
        "whoever takes notices that some of this bucket's may come late or not at all.",
    ),
    Event(
        name="follower_silent",
        says="the %s of shard %d is silent: it has said nothing for %d s; its process is %d",
        values=("what", "shard", "silent_s", "pid"),
        do="Balances and cutoffs are not concerned. See what the process waits for (cat /proc/PID/stack, py-spy "
        "dump --pid PID), or kill -9 it: it is started again, and nothing is lost.",
    ),
    Event(
        name="follower_stopped",
        says="%s: %s; again in %g s",
        values=("what", "reason", "again_s"),
        do="Balances and cutoffs are not concerned. If it goes on: the disk is full, or its database (history, "
        "notices) below daemon.data_dir damaged, or another user's (chown it to the owner of daemon.data_dir).",
    ),
    Event(
        name="move_not_carried_on",
        says="the move of bucket %d to shard %d is given up: %s",
        values=("bucket", "shard", "reason"),
        do="Its driver ended, and it could not be carried on. The bucket is served where it was; ask for the move "
        "again (billing buckets move) once the reason is gone.",
    ),
    Event(
        name="history_not_followed",
        says="the history of %s cannot be followed: %s",
        values=("of", "reason"),
        do="Balances and cutoffs are not concerned. If the log's servers cannot be reached (billing cluster "
        "status), it goes on by itself once they can. Else: a journal that is damaged, or that ends before this "
        "host's file of it (billing doctor, with all hosts stopped).",
    ),
    Event(
        name="history_lacks",
        says="the history of shard %d lacks %s: no other host has that",
        values=("shard", "batches"),
        do="Nothing, if a host that is down has it: it is asked once it is back. Else answers say what they miss. "
        "`billing rebuild --from-backup` brings back what a backup has; a larger cluster.retain_bytes lets hosts be "
        "away for longer.",
    ),
    Event(
        name="history_not_filled",
        says="what the history of shard %d lacks cannot be taken from other hosts: %s",
        values=("shard", "reason"),
        do="Answers say what they miss, and it is tried again. Where an entry does not go on from another, one of the "
        "two hosts' files is wrong: billing doctor on both, with the daemons stopped. Where the disk is full: a second "
        "file of that size has to fit.",
    ),
    Event(
        name="notices_given_up",
        says="notify.url is empty: what shard %d still had to tell is given up",
        values=("shard",),
        do="Nothing, if notices are not wanted any more.",
    ),
    Event(
        name="reload_refused",
        says="the configuration was not reloaded, nothing has changed:\n%s",
        values=("faults",),
        do="Mend what is named, billing config check, and reload again.",
    ),
    Event(
        name="reload_late",
        says="the configuration is not reloaded yet: its files have not been read for %g s",
        values=("seconds",),
        do="Look at where config.toml and the files that it names lie: that disk or mount hangs. The daemon serves on "
        "with the former configuration, and reloads as soon as they are read.",
    ),
    Event(
        name="reload_needs_restart",
        says="the configuration was not reloaded, nothing has changed: without a restart %s",
        values=("reason",),
        do="systemctl restart billing in a quiet minute, or take the change back.",
    ),
    Event(
        name="key_needs_restart",
        says="%s has changed and needs a restart to take effect",
        values=("key",),
        do="systemctl restart billing in a quiet minute.",
    ),
    Event(
        name="grant_lapsed",
        says="shard %d: %s; commands and reads are refused until it is renewed",
        values=("shard", "reason"),
        do="Look at the log's servers and at the network to them (`billing cluster check`). Nothing is lost; it "
        "goes on by itself once they answer.",
    ),
    Event(
        name="grant_not_renewed",
        says="shard %d: the grant of time is not renewed: %s",
        values=("shard", "reason"),
        do="Mend what is named: the log's servers, the network to them, or their certificates and this host's "
        "credentials (`billing cluster check`). It goes on by itself then.",
    ),
    Event(
        name="grant_renewed",
        says="shard %d: the journal has renewed the grant of time",
        values=("shard",),
        do="Nothing: the shard serves again. Look for what kept the log's servers from answering.",
    ),
    Event(
        name="http_bug",
        says="a request to the HTTP door met a bug",
        values=(),
        do="The client got INTERNAL and nothing else was harmed. Report the trace above with `billing info`.",
    ),
    Event(
        name="act_not_recorded",
        says="%s by %r has no record: %s",
        values=("act", "actor", "reason"),
        do="The act was carried out. Make room on the disk, or give audit/ of the data directory back to the "
        "daemon's user; note the act by hand.",
    ),
    Event(
        name="act_not_recorded_too_many",
        says="%s by %r has no record; records that wait for the disk: %d",
        values=("act", "actor", "records"),
        do="The act was carried out. The disk hangs, or operators' calls come by the thousand: look at both; note "
        "the act by hand.",
    ),
)

EVENTS: Final = {event.says: event for event in _ALL}
