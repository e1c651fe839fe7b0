"""Workers that start within milliseconds and break where a test wants them to.

This process has loaded torch and a part of MNIST; it forks a worker for each order that it reads
from its standard input. Everything in the worker is the real code, but for the faults.
"""

import atexit
import errno
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from bnviz import processes

PROJECT = pathlib.Path(__file__).resolve().parent.parent


class Zygote:
    """The test's side."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline().strip() == "ready"

    def start(self, directory, **order):
        """Fork a worker for a run directory; returns its pid.

        Keywords: `crash_at`, `full_at` and `read_only_at`, the number of the file operation before
        which it kills itself, or from which on the disk is full or read-only; `denied`, the name of
        a folder that it may not write to; any constant of bnviz's recorder, reporter or trace.
        """
        return self._ask({"directory": str(directory), **order})

    @classmethod
    @functools.cache
    def shared(cls):
        """One for all tests; it ends with the process that they run in."""
        zygote = cls()
        atexit.register(zygote.close)
        return zygote

    def is_alive(self, pid):
        return processes.process_started(pid) is not None

    def kill(self, pid):
        if self.is_alive(pid):
            os.kill(pid, signal.SIGKILL)

    def wait(self, pid):
        """How a worker ended: its exit status, or minus the signal that killed it."""
        return self._ask({"wait": pid})

    def run(self, directory, **order):
        return self.wait(self.start(directory, **order))

    def _ask(self, order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


class Faults:
    """Counts the worker's operations on files, and strikes at one of them."""

    def __init__(self, crash_at=None, full_at=None, read_only_at=None, denied=None):
        self.crash_at, self.full_at, self.read_only_at = crash_at, full_at, read_only_at
        self.denied = denied
        self.count = 0
        self.free_bytes = 0  # when the disk is full

    def strike(self, before_end=lambda: None):
        self.count += 1
        if self.count == self.crash_at:
            before_end()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.read_only_at is not None and self.count >= self.read_only_at:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def allow_write(self, path, size):
        if self.denied in pathlib.Path(path).parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        if self.full_at is None or self.count < self.full_at:
            return
        if size > self.free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self.free_bytes -= size

    def install(self):
        from bnviz import parts

        replace, unlink, fsync = os.replace, os.unlink, os.fsync
        write_bytes = pathlib.Path.write_bytes

        def counted(original):
            def call(*arguments, **options):
                self.strike()
                return original(*arguments, **options)

            return call

        def counted_unlink(path, **options):
            self.strike()
            if str(path).endswith(".reserve") and os.path.exists(path):
                self.free_bytes += os.path.getsize(path)
            return unlink(path, **options)

        def counted_write_bytes(path, data):
            self.strike(lambda: write_bytes(path, bytes(data)[: len(data) // 2]))
            self.allow_write(path, len(data))
            return write_bytes(path, data)

        faults = self

        class CountedWriter(parts.pq.ParquetWriter):
            def __init__(self, path, *arguments, **options):
                self.path = path
                super().__init__(path, *arguments, **options)

            def write_table(self, table, **options):
                faults.strike(lambda: write_bytes(self.path, b"PAR1 and not much more"))
                faults.allow_write(self.path, table.nbytes)
                super().write_table(table, **options)

        os.replace, os.fsync, os.unlink = counted(replace), counted(fsync), counted_unlink
        pathlib.Path.write_bytes = counted_write_bytes
        parts.pq.ParquetWriter = CountedWriter


def _work(order, digits):
    from bnviz import recorder, reporter, trace, training, worker
    from bnviz.store import Run

    run = Run(pathlib.Path(order.pop("directory")))
    log = os.open(run.paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.setsid()
    kinds = ("crash_at", "full_at", "read_only_at", "denied")
    faults = Faults(**{kind: order.pop(kind) for kind in kinds if kind in order})
    faults.install()
    for name, value in order.items():
        module = next(m for m in (recorder, reporter, trace, training) if hasattr(m, name))
        setattr(module, name, value)
    reporting = reporter.Reporter(run)
    signal.signal(signal.SIGTERM, lambda *_: setattr(reporting, "interrupted", True))
    worker.carry_out([reporting], digits, own_process=True)
    print(f"{faults.count} file operations", flush=True)


def main():
    import torch

    torch.set_num_threads(1)
    from bnviz import data, recorder, training, worker  # noqa: F401  before the fork

    mnist = data.load_mnist()
    digits = data.ImageData(
        mnist.train_images[:600],
        mnist.train_labels[:600],
        mnist.test_images[:200],
        mnist.test_labels[:200],
    )
    answer = os.dup(1)
    os.write(answer, b"ready\n")
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            status = os.waitpid(order["wait"], 0)[1]
            os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            continue
        pid = os.fork()
        if pid == 0:
            try:
                _work(order, digits)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            finally:
                sys.stdout.flush()
            os._exit(0)
        while os.getpgid(pid) != pid:  # so that it can be killed as a group
            time.sleep(0.001)
        os.write(answer, f"{pid}\n".encode())


if __name__ == "__main__":
    main()
