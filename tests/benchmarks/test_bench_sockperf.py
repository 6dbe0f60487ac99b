"""What is taken of what sockperf and iperf 2 print; the texts are theirs (sockperf 3.7, iperf 2.1.8)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.procs import Unavailable
from bench.sockperf import arrived, counted, number, received

PING_PONG = """\
sockperf: \x1b[2;35m== version #3.7-no.git == \x1b[0m
sockperf[CLIENT] send on:sockperf: using recvfrom() to block on socket(s)

[ 0] IP = 127.0.0.1       PORT =  7100 # UDP
sockperf: Warmup stage (sending a few dummy messages)...
sockperf: Starting test...
sockperf: Test end (interrupted by timer)
sockperf: Test ended
sockperf: [Total Run] RunTime=1.000 sec; Warm up time=400 msec; SentMessages=48310; ReceivedMessages=48309
sockperf: ========= Printing statistics for Server No: 0
sockperf: [Valid Duration] RunTime=0.550 sec; SentMessages=27542; ReceivedMessages=27542
sockperf: \x1b[2;35m====> avg-latency=9.964 (std-dev=18.552)\x1b[0m
sockperf: # dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0
sockperf: Summary: Latency is 9.964 usec
sockperf: \x1b[2;35mTotal 27542 observations\x1b[0m; each percentile contains 275.42 observations
sockperf: ---> <MAX> observation = 1696.595
sockperf: ---> percentile 99.999 = 1696.595
sockperf: ---> percentile 99.990 =  745.057
sockperf: ---> percentile 99.900 =   99.546
sockperf: ---> percentile 99.000 =   24.706
sockperf: ---> percentile 90.000 =   10.644
sockperf: ---> percentile 75.000 =    9.467
sockperf: ---> percentile 50.000 =    8.901
sockperf: ---> percentile 25.000 =    8.525
sockperf: ---> <MIN> observation =    6.742
"""

NOBODY = """\
sockperf: Starting test...
sockperf: Test end (interrupted by timer)
sockperf: Test ended
sockperf: No messages were received from the server. Is the server down?
"""

THROUGHPUT = """\
sockperf: \x1b[2;35m== version #3.7-no.git == \x1b[0m
sockperf[CLIENT] send on:
[ 0] IP = 127.0.0.1       PORT =  7100 # UDP
sockperf: Warmup stage (sending a few dummy messages)...
sockperf: Starting test...
sockperf: Test end (interrupted by timer)
sockperf: Test ended
sockperf: Total of 111991 messages sent in 1.000 sec

sockperf: \x1b[2;35mNOTE: test was performed, using msg-size=100. For getting maximum throughput consider using \
--msg-size=1472\x1b[0m
sockperf: Summary: Message Rate is 111936 [msg/sec]
sockperf: Summary: BandWidth is 10.675 MBps (85.400 Mbps)
"""

SERVER = """\
sockperf: \x1b[2;35m== version #3.7-no.git == \x1b[0m
sockperf: [SERVER] listen on:
[ 0] IP = 0.0.0.0         PORT =  7100 # UDP
sockperf: Warmup stage (sending a few dummy messages)...
sockperf: [tid 13879] using recvfrom() to block on socket(s)
"""
SERVER_ENDED = (
    SERVER
    + """\
sockperf: Test end (interrupted by user)
sockperf: Total 126721 messages received and handled
sockperf: cleanupAfterLoop() exit
"""
)

IPERF = """\
------------------------------------------------------------
Client connecting to 127.0.0.1, UDP port 7110
Sending 1400 byte datagrams, IPG target: 0.11 us (kalman adjust)
UDP buffer size:  208 KByte (default)
------------------------------------------------------------
[  1] local 127.0.0.1 port 42209 connected with 127.0.0.1 port 7110
[ ID] Interval       Transfer     Bandwidth
[  1] 0.0000-1.0000 sec   194 MBytes  1.63 Gbits/sec
[  1] Sent 145621 datagrams
"""
IPERF_REPORT = """\
[  1] Server Report:
[ ID] Interval       Transfer     Bandwidth        Jitter   Lost/Total Datagrams
[  1] 0.0000-0.9989 sec   133 MBytes  1.12 Gbits/sec   0.000 ms 45997/145620 (32%)
"""
#: In the older form: the columns are others, and a line may follow.
OLD_REPORT = """\
[  3] Server Report:
[  3]  0.0- 2.0 sec  2.50 MBytes  10.5 Mbits/sec   0.005 ms   10/ 1893 (0.53%)
[  3] 0.00-2.00 sec  7 datagrams received out-of-order
"""
NO_REPORT = """\
read failed: Connection refused
[  3] WARNING: did not receive ack of last datagram after 10 tries.
"""


def test_of_sockperfs_ping_pong_the_median() -> None:
    assert number(PING_PONG, "percentile 50") == 8.901
    assert number(PING_PONG, "percentile 99") == 24.706, "not that of 99.9"


def test_of_sockperfs_throughput_what_was_sent_and_how_fast() -> None:
    assert (number(THROUGHPUT, "Message Rate"), number(THROUGHPUT, "Total of")) == (111936, 111991)


def test_of_sockperfs_server_what_came_when_it_has_ended() -> None:
    assert received(SERVER) is None
    assert received(SERVER_ENDED) == 126721


def test_what_came_is_a_part_of_the_rate_and_never_more() -> None:
    assert arrived([1000.0, 2000.0], came=30, sent=40) == [750, 1500]
    assert arrived([1000.0], came=44, sent=40) == [1000], "those of the warm-up"


def test_of_iperf_what_came_and_was_sent_in_the_servers_time() -> None:
    assert counted(IPERF + IPERF_REPORT) == pytest.approx(((145620 - 45997) / 0.9989, 145620 / 0.9989))
    assert counted(IPERF + OLD_REPORT) == pytest.approx(((1893 - 10) / 2, 1893 / 2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        NOBODY,
        PING_PONG.partition("sockperf: ---> <MAX>")[0],
        THROUGHPUT,
        "sockperf: ---> percentile 50.000 =      nan\nsockperf: ---> percentile 25.000 =    8.525\n",
        "sockperf: ---> percentile 500 = 1\n",
        "sockperf: ---> percentile 50.000 = .\n",
    ],
)
def test_without_the_figure_there_is_one_clear_error(text: str) -> None:
    with pytest.raises(Unavailable, match=r"^there is no 'percentile 50' in what sockperf printed$"):
        number(text, "percentile 50")


@pytest.mark.parametrize("text", ["", NOBODY, THROUGHPUT, "sockperf: Total messages received and handled"])
def test_a_server_that_has_not_counted_says_nothing(text: str) -> None:
    assert received(text) is None


def test_nothing_sent_is_one_clear_error() -> None:
    with pytest.raises(Unavailable, match=r"^sockperf sent nothing$"):
        arrived([0.0], came=0, sent=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        IPERF,
        IPERF + NO_REPORT,
        IPERF_REPORT.replace("0.9989", "0.0000"),
        IPERF_REPORT.replace("0.9989", "..."),
        IPERF_REPORT.replace("45997/145620 (32%)", ""),
        IPERF_REPORT.partition("[  1] 0.0000")[0],
        # The client's own line is no report, whatever follows.
        "[  1] Server Report:\n" + IPERF + "45997/145620 (32%)\n",
    ],
)
def test_without_the_servers_report_there_is_one_clear_error(text: str) -> None:
    with pytest.raises(Unavailable, match=r"^iperf's server did not report$"):
        counted(text)
