"""Record Alpaca's messages in files, and replay the files as a stand-in for Alpaca.

    lines       the lines of a recording, and the codec that makes them, pure
    zstd        the compression, from the standard library or its backport
    files       names and contents of the files: whole frames, written and read
    writer      the thread that compresses, writes and deletes
    recorder    the holder of the recorded topics, between the feeds and the writer
    timeline    the recorded messages of several files in the order of their arrival
    replay      the recorded messages as data of the simulator

The recorder never waits for a disk: messages that do not fit into the writer's bounded queue are dropped and counted,
and a line of the file says so. Only a proxy that records, `replay` and `demo --replay` import this package.
"""
