"""Programs that try to escape, to cheat, or to stop the judge. Each must be judged wrong and change nothing outside.

_BREAK_OUT: the attempt stands above a right function and raises when it is refused, so that a right verdict would mean
that it succeeded. _CHEATS: wrong functions that try to count as right. _STOPPERS: programs that take time, memory or
the process. `{victim}` is a file outside, `{folder}` its folder, `{port}` a port that listens on 127.0.0.1, `{run}` the
number of the run's process.
"""

RIGHT = "def double(x):\n    return 2 * x\n"
WRONG = "def double(x):\n    return 2 * x + 1\n"

_C = (
    "import ctypes, posix\nC = ctypes.CDLL(None, use_errno=True)\n"
    # Refused is EPERM, EACCES or ENOSYS: a call that was let through and found its arguments wrong is a success.
    "def must(result):\n    if result == -1 and ctypes.get_errno() in (1, 13, 38): raise OSError('refused')\n"
)
_WRITE = "import posix\nO = posix.O_WRONLY | posix.O_CREAT\n"
_SEARCH = "import gc, sys\nframe = sys._getframe()\n"

_BREAK_OUT = {
    # files
    "writes a file": _WRITE + "posix.write(posix.open('{victim}', posix.O_WRONLY), b'x')\n",
    "reads and writes a file": _WRITE + "posix.open('{victim}', posix.O_RDWR)\n",
    "makes a file outside": _WRITE + "posix.open('{folder}/new', O)\n",
    "makes a file in its own folder": _WRITE + "posix.open('new', O)\n",
    "makes a file in /tmp": _WRITE + "posix.open('/tmp/harc-attack', O)\n",
    "makes a file without a name": _WRITE + "posix.open('/tmp', posix.O_TMPFILE | posix.O_RDWR)\n",
    "makes shared memory": _WRITE + "posix.open('/dev/shm/harc-attack', O)\n",
    "uses Python's temporary files": "import tempfile\ntempfile.TemporaryFile()\n",
    "nests 3,000 folders": "import posix\nfor _ in range(3000): posix.mkdir('d'); posix.chdir('d')\n",
    "truncates": "import posix\nposix.truncate('{victim}', 0)\n",
    "removes": "import posix\nposix.unlink('{victim}')\n",
    "removes a folder": "import posix\nposix.rmdir('{folder}/empty')\n",
    "renames": "import posix\nposix.rename('{victim}', '{folder}/other')\n",
    "links": "import posix\nposix.link('{victim}', '{folder}/other')\n",
    "links symbolically": "import posix\nposix.symlink('{victim}', '{folder}/other')\n",
    "makes a pipe with a name": "import posix\nposix.mkfifo('{folder}/pipe')\n",
    "makes a device": "import posix\nposix.mknod('{folder}/null', 0o20666, posix.makedev(1, 3))\n",
    "changes rights": "import posix\nposix.chmod('{victim}', 0o777)\n",
    "changes rights by descriptor": "import posix\nposix.fchmod(posix.open('{victim}', posix.O_RDONLY), 0o777)\n",
    "changes times": "import posix\nposix.utime('{victim}', (1, 1))\n",
    "changes the owner": "import posix\nposix.chown('{victim}', posix.getuid(), posix.getgid())\n",
    "sets attributes": "import posix\nposix.setxattr('{victim}', 'user.harc', b'1')\n",
    "makes a file immutable": "import fcntl, posix\n"
    "fcntl.ioctl(posix.open('{victim}', posix.O_RDONLY), 0x40086602, (16).to_bytes(8, 'little'))\n",
    "locks a file": "import fcntl, io, os\nfcntl.flock(io.open(os.__file__), fcntl.LOCK_SH)\n",
    "locks a part of a file": "import fcntl, io, os\nfcntl.lockf(io.open(os.__file__), fcntl.LOCK_SH)\n",
    "leases a file": "import fcntl, io, os\nfcntl.fcntl(io.open(os.__file__), 1024, fcntl.F_RDLCK)\n",
    "reads a file": "import io\nio.open('{victim}').read()\n",
    "reads the passwords": "import io\nio.open('/etc/shadow').read()\n",
    "reads the users": "import io\nio.open('/etc/passwd').read()\n",
    "lists a folder": "import posix\nposix.listdir('{folder}')\n",
    "lists the root": "import posix\nassert set(posix.listdir('/')) - {'lib', 'lib64', 'usr', 'dev', 'etc'}\n",
    "reads its parent's environment": "import io, posix\nio.open(f'/proc/{posix.getppid()}/environ', 'rb').read()\n",
    "reads its parent's memory": "import io, posix\nio.open(f'/proc/{posix.getppid()}/mem', 'rb')\n",
    "reads the run's environment": "import io\nio.open('/proc/{run}/environ', 'rb').read()\n",
    "reads its own memory map": "import io\nio.open('/proc/self/maps').read()\n",
    "reads a secret of the environment": "import os\nassert os.environ['HARC_TEST_TOKEN']\n",
    "leaves its root": "import posix\nposix.chroot('/')\n",
    # network
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=3)\n",
    "sends a datagram": "import socket\nsocket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port}))\n",
    "listens": "import socket\nsocket.create_server(('127.0.0.1', 0))\n",
    "opens a local socket": "import socket\nsocket.socket(socket.AF_UNIX)\n",
    "sends from a pair of sockets": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n",
    "talks to the kernel": "import socket\nsocket.socket(16, 3)\n",
    "sends to the control socket": "import socket\n[socket.socket(fileno=n).send(b's') for n in range(3, 64)]\n",
    # processes
    "forks": "import posix\nif posix.fork() == 0: posix._exit(0)\n",
    "forks without end": "import posix\nwhile True: posix.fork()\n",
    "forks in C": _C + "must(C.fork())\n",
    "forks by number": _C + "must(C.syscall(56, 17, 0, 0, 0, 0))\nmust(C.syscall(57))\n",
    "clones into a namespace": _C + "must(C.unshare(0x10000000))\n",
    "starts a program": "import posix\nposix.execv('/bin/true', ['true'])\n",
    "spawns a program": "import posix\nposix.posix_spawn('/bin/true', ['true'], {})\n",
    "uses subprocess": "import _posixsubprocess, importlib, subprocess\nimportlib.reload(subprocess)\n"
    "subprocess.run(['true'], check=True)\n",
    "uses multiprocessing": "import multiprocessing\np = multiprocessing.Process(target=int)\np.start()\n",
    "kills its parent": "import posix\nposix.kill(posix.getppid(), 9)\n",
    "kills its group": "import posix\nposix.kill(-posix.getpgrp(), 15)\n",
    "kills all": "import posix\nposix.kill(-1, 9)\n",
    "kills the run": "import posix\nposix.kill({run}, 15)\n",
    "signals by thread": _C + "must(C.syscall(234, posix.getppid(), posix.getppid(), 15))\n",
    "signals by queue": _C + "must(C.sigqueue(posix.getppid(), 15, 0))\n",
    "owns a pipe for its parent": "import fcntl, posix\nr, w = posix.pipe()\n"
    "fcntl.fcntl(r, fcntl.F_SETOWN, posix.getppid())\n",
    "limits its parent": _C + "must(C.prlimit(posix.getppid(), 7, bytes(16), None))\n",
    "raises its own limits": _C + "must(C.prlimit(0, 7, bytes(16), None))\n",
    "slows its parent": "import posix\nposix.setpriority(0, posix.getppid(), 19)\n",
    "traces": _C + "must(C.ptrace(16, posix.getppid(), 0, 0))\n",
    "writes its parent's memory": _C + "must(C.process_vm_writev(posix.getppid(), 0, 0, 0, 0, 0))\n",
    "outlives its parent": _C + "must(C.prctl(1, 0, 0, 0, 0))\n",
    "leaves its session": "import posix\nposix.setsid()\n",
    "opens a process": "import posix\nposix.pidfd_open(posix.getppid())\n",
    # kernel
    "makes a file in memory": "import posix\nposix.memfd_create('x')\n",
    "makes a secret file in memory": _C + "must(C.syscall(447, 0))\n",
    "makes System V memory": _C + "must(C.shmget(0, 4096, 0o1600))\n",
    "makes a System V queue": _C + "must(C.msgget(0, 0o1600))\n",
    "makes a System V semaphore": _C + "must(C.semget(0, 1, 0o1600))\n",
    "makes a POSIX queue": _C + "must(C.syscall(240, b'harc', 0o102, 0o600, 0))\n",
    "adds a key": _C + "must(C.syscall(248, b'user', b'harc', b'x', 1, -3))\n",
    "reads keys": _C + "must(C.syscall(250, 0, -3, 0))\n",
    "handles page faults": _C + "must(C.syscall(323, 1))\n",
    "loads BPF": _C + "must(C.syscall(321, 0, bytes(128), 128))\n",
    "counts events": _C + "must(C.syscall(298, bytes(128), 0, -1, -1, 0))\n",
    "uses io_uring": _C + "must(C.syscall(425, 1, bytes(120)))\n",
    "uses a 32-bit pointer's calls": _C + "must(C.syscall(0x40000000 + 39))\n",
    "mounts": _C + "must(C.mount(b'none', b'/', b'tmpfs', 0, None))\n",
    "unmounts": _C + "must(C.umount2(b'/dev', 2))\n",
    "enters a namespace": _C + "must(C.setns(posix.open('/proc/1/ns/net', 0), 0))\n",
    "takes capabilities": _C + "must(C.capset(bytes(8), bytes(24)))\n",
    "becomes someone": "import posix\nposix.setuid(posix.getuid())\n",
    "changes the filter": _C + "must(C.prctl(22, 1, 0, 0, 0))\n",
    "changes Landlock": _C + "must(C.syscall(444, bytes(8), 8, 0))\n",
    "sets the clock": _C + "must(C.clock_settime(0, bytes(16)))\n",
    "names the host": "import socket\nsocket.sethostname('harc')\n",
    "widens a pipe": "import fcntl, posix\nfcntl.fcntl(posix.pipe()[0], 1031, 2**20)\n",
    "opens 100 files": "import io, os\nkept = [io.open(os.__file__) for _ in range(100)]\n",
    "takes the memory": "x = bytearray(5 * 2**30)\n",
    "pins memory": _C + "must(C.mlockall(1))\n",
}

_ALWAYS_EQUAL = (
    "class Yes({base}):\n    __eq__ = lambda a, b: True\n    __ne__ = lambda a, b: False\n    __hash__ = None\n"
)
_TO_ALL = (
    "import posix\ndef to_all(data):\n    for n in range(64):\n"
    "        try: posix.write(n, data)\n        except OSError: pass\n"
)
_CHEATS = {
    "equals everything": _ALWAYS_EQUAL.format(base="") + "def double(x):\n    return Yes()\n",
    "an int that equals everything": _ALWAYS_EQUAL.format(base="int") + "def double(x):\n    return Yes()\n",
    "a float that equals everything": _ALWAYS_EQUAL.format(base="float") + "def double(x):\n    return Yes()\n",
    "says it is an int": "class Yes:\n    __class__ = int\n    __eq__ = lambda a, b: True\n"
    "def double(x):\n    return Yes()\n",
    "makes its argument equal everything": "def double(x):\n    import ctypes\n"
    "    ctypes.memset(id(x) + 24, 0, 4)\n    return x\n",
    "rebuilds itself as code": "import os\nclass R:\n"
    "    def __reduce__(self): return os.system, ('touch {folder}/reduced',)\n"
    "def double(x):\n    return R()\n",
    "sends code to every descriptor": _TO_ALL + "import os, pickle\nclass R:\n"
    "    def __reduce__(self): return os.system, ('touch {folder}/reduced',)\nto_all(pickle.dumps(R()))\n" + WRONG,
    "finds the queue by frames": _SEARCH + "import os\nwhile frame:\n"
    "    for v in list(frame.f_locals.values()):\n        if hasattr(v, 'put'): v.put((True, 'pass'))\n"
    "        if hasattr(v, 'send'):\n            try: v.send(b's')\n            except BaseException: pass\n"
    "    frame = frame.f_back\n" + WRONG,
    "finds the expected by frames": "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        for name in ('expected', 'exp', 'outputs'):\n"
    "            if name in frame.f_locals: return frame.f_locals[name][0]\n        frame = frame.f_back\n"
    "    return 0\n",
    "finds the expected in memory": "import gc\ndef double(x):\n    for o in gc.get_objects():\n"
    "        if type(o) is list and o in ([2, 4], [10, -14]): return o[0 if x in (1, 5) else 1]\n    return 0\n",
    "sets what the judge reads": _SEARCH + "import os\nfor o in gc.get_objects():\n"
    "    if type(o).__name__ in ('Synchronized', 'SynchronizedArray', 'SimpleNamespace'):\n        o.value = 0\n"
    "while frame:\n    frame.f_locals.update(stat=0, details=[True] * 9, progress=2, sample=False)\n"
    "    frame = frame.f_back\nos._exit(0)\n" + WRONG,
    "changes the expected in frames": "import ctypes, sys\ndef double(x):\n    frame = sys._getframe()\n"
    "    while frame:\n        if 'inputs' in frame.f_locals: frame.f_locals['inputs'][:] = []\n"
    "        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), 1)\n"
    "        frame = frame.f_back\n    return 0\n",
    "replaces allclose": "import builtins, numpy\nnumpy.allclose = numpy.isclose = lambda *a, **k: True\n"
    "builtins.all = builtins.any = builtins.type = lambda *a: True\n" + WRONG,
    "replaces the comparison": "import evalplus.eval as e\ne.unsafe_execute = lambda *a: None\n"
    "e.is_floats = lambda x: True\n" + WRONG,
    "replaces the format": "from eval.sandbox import wire\nwire.dumps = lambda value: '[true,0]'\n" + WRONG,
    "replaces the judge": "from eval.judges import replay\nreplay.passes = lambda *a: True\n" + WRONG,
    "reads the problems": "import posix, io\ndef double(x):\n"
    "    for folder in ('.', '..', '/tmp', '{folder}', '/work'):\n"
    "        for name in posix.listdir(folder):\n"
    "            if 'canonical_solution' in io.open(name).read(): return 2 * x\n",
    "runs the reference solution": "def double(x):\n    import gc\n    for o in gc.get_objects():\n"
    "        if type(o) is dict and 'canonical_solution' in o: return 2 * x\n    return 0\n",
    "finds the reference in its memory": "import ctypes, gc\ndef double(x):\n"
    "    found = [o for o in gc.get_referrers(str) if 'return 2 * x' in repr(o)[:100000]]\n"
    "    return 2 * x if found else 0\n",
    "says that it is right": _TO_ALL + 'to_all(b\'{{"right": true, "why": ""}}\\n\' * 8)\n' + WRONG,
    "says that it ran": _TO_ALL + "to_all(b'true\\n' * 8)\n" + WRONG,
    "says nothing but that it ran": _TO_ALL + "to_all(b'true\\n')\nposix._exit(0)\n",
    "sends no JSON": _TO_ALL + "to_all(b'\\xff\\x00\\n' * 8)\n" + WRONG,
    "sends unknown tags": _TO_ALL + 'to_all(b\'true\\n[{{"py/object": "os.system"}}, 0]\\n\')\n' + WRONG,
    "exits well": "import sys\nsys.exit(0)\n" + RIGHT,
    "leaves": "import posix\nposix._exit(0)\n" + RIGHT,
    "leaves when called": "import posix\ndef double(x):\n    posix._exit(0)\n",
    "returns what it was given": "def double(x):\n    return x\n",
    "returns a generator": "def double(x):\n    yield 2 * x\n",
    "returns a coroutine": "async def double(x):\n    return 2 * x\n",
    "counts its calls": "n = 0\ndef double(x):\n    global n\n    n += 1\n    return [None, 2, 4][n]\n",
    "traces the judge": "import sys\ndef trace(frame, event, value):\n    frame.f_locals['value'] = True\n"
    "    return trace\n"
    "sys.settrace(trace)\nsys.setprofile(trace)\n" + WRONG,
    "acts at exit": "import atexit, posix\natexit.register(posix._exit, 0)\n" + WRONG,
    "acts when collected": "import posix\nclass D:\n    def __del__(self): posix._exit(0)\nkept = D()\n" + WRONG,
    "is not Python": "def double(x) return",
    "has a null byte": "\0" + RIGHT,
    "has half a character": "x = '\ud800'\n# \ud800\n" + RIGHT,
    "nests too deep": "x = " + "(" * 5000 + ")" * 5000 + "\n" + RIGHT,
    "defines another name": "def other(x):\n    return 2 * x\n",
}

_STOPPERS = {
    "never ends": "def double(x):\n    while True: pass\n",
    "never ends and catches all": "def double(x):\n    while True:\n        try:\n            while True: pass\n"
    "        except BaseException: pass\n",
    "ignores the alarm": "import signal, time\nsignal.signal = lambda *a: None\ndef double(x):\n"
    "    import _signal\n    _signal.signal(14, _signal.SIG_IGN)\n    time.sleep(60)\n    return 2 * x\n",
    "ignores all signals": "import _signal, time\nfor n in range(1, 65):\n    try: _signal.signal(n, _signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\ndef double(x):\n    time.sleep(60)\n    return 2 * x\n",
    "leaves threads": "import threading\nthreading.stack_size(2**16)\n"
    "threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\n" + WRONG,
    "sends without end": _TO_ALL + "import fcntl\ndef double(x):\n    while True: to_all(b'x' * 2**20)\n",
    "sends lines without end": _TO_ALL + "def double(x):\n    while True: to_all(b'[1,0]\\n' * 10**5)\n",
    "closes everything": "import posix\nposix.closerange(0, 64)\n" + RIGHT,
    "recurses without end": "import sys\nsys.setrecursionlimit(10**9)\ndef double(x):\n    return double(x)\n",
    "recurses in C": "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)\n"
    + RIGHT,
    "crashes": "import ctypes\nctypes.string_at(0)\n" + RIGHT,
    "overwrites the interpreter": "import ctypes\nctypes.memset(id(int), 0, 400)\n" + RIGHT,
    "returns itself": "def double(x):\n    r = []\n    r.append(r)\n    return r\n",
    "returns a deep list": "def double(x):\n    r = []\n    for _ in range(10**5): r = [r]\n    return r\n",
    "sends a deep list": _TO_ALL + "to_all(b'true\\n[' + b'[' * 10**5 + b']' * 10**5 + b',0]\\n')\n" + WRONG,
    "returns a list that doubles": "def double(x):\n    r = [1]\n    for _ in range(40): r = [r, r]\n    return r\n",
    "returns a vast int": "def double(x):\n    return 1 << 2**28\n",
    "returns a vast text": "def double(x):\n    return 'x' * 2**28\n",
    "returns a vast power": "from decimal import Decimal\ndef double(x):\n    return Decimal('1e999999999999')\n",
    "returns infinity": "def double(x):\n    return float('inf')\n",
    "returns no number": "def double(x):\n    return float('nan')\n",
    "returns an endless iterator": "import itertools\ndef double(x):\n    return itertools.count()\n",
    "runs when it is shown": "class R:\n    def __repr__(self): raise KeyboardInterrupt\n"
    "    __str__ = __iter__ = __repr__\n"
    "def double(x):\n    return R()\n",
    "raises without end": "class E(BaseException):\n    def __str__(self): raise E\ndef double(x):\n    raise E\n",
    "prints without end": "def double(x):\n    while True: print('x' * 10**6)\n",
}

HARMLESS = {
    "prints much": "import posix\nfor _ in range(2000): print('x' * 1000); posix.write(1, b'x' * 1000)\n" + RIGHT,
    "uses threads": "import threading\nthreading.stack_size(2**16)\ndef double(x):\n    r = []\n"
    "    t = threading.Thread(target=lambda: r.append(2 * x))\n    t.start()\n    t.join()\n    return r[0]\n",
    "uses asyncio": "import asyncio\nasync def twice(x):\n    await asyncio.sleep(0)\n    return 2 * x\n"
    "def double(x):\n    return asyncio.run(twice(x))\n",
    "uses libraries": "import numpy, scipy.special, sympy, zoneinfo\ndef double(x):\n"
    "    return int(numpy.dot([x, x], [1, 1]))\n",
    "reads its libraries": "import inspect, textwrap\nassert 'def dedent' in inspect.getsource(textwrap)\n" + RIGHT,
    "right": RIGHT,
}

ATTACKS = {
    **{name: attempt + RIGHT for name, attempt in _BREAK_OUT.items()},
    **_CHEATS,
    **_STOPPERS,
}
# Enough of each kind for the tests that run at every change.
CORE = (
    "writes a file", "changes rights", "reads a file", "reads its parent's environment", "connects", "forks",
    "kills its parent", "starts a program", "makes a file in memory", "equals everything", "finds the queue by frames",
    "sends code to every descriptor", "finds the expected in memory", "replaces allclose", "says that it is right",
    "leaves", "closes everything", "recurses without end", "sends a deep list",
)  # fmt: skip
