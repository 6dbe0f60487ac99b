"""The suite behind `make bench`: native loopback, veth + bridge and AppSwitch side by side in one run.

Run it as `python -m bench` from the root of the sources (`--help` lists the options). A map:

    stats       figures and their medians, verdicts against targets (pure)
    procs       child processes that never outlive the run, and commands with a time limit
    switch      one AppSwitch instance of the run's own, driven through its command line
    lab         what the cases share: settings, compiled helpers, alternating runs
    bridge      two network namespaces joined by veth pairs and a bridge
    throughput · transactions · breakdown · web · stores · startup · footprint · table: the cases, a file each
    rows        work on a switch's table in processes of its own
    machine     the description of the machine and of the tools
    report      the pages in docs/, a file a case · plot: docs/benchmarks.svg (both pure)
    unixpair.c  shim that runs the very same iperf over a Unix pair (the reference)
    transact.c  client and server of the transaction benchmark
    peer        their stand-ins in Python where there is no C compiler
    floor       the least that a trap handler in Python can cost, bare and careful
"""
