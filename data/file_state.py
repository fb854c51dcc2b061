"""How a file is at one moment, by which it is recognized later without being read: size, times and inode.

Whatever is written to a file afterwards sets its `ctime`, which no program can set back; a file that is put in its
place has another inode.
"""

import os

# Seconds: a file that has changed more recently is not settled, since the clock of a file system may tick so slowly
# that another change leaves the times as they are.
SETTLED = 2


def state_of(stat: os.stat_result) -> dict[str, int]:
    """The state of a file, as JSON."""
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}
