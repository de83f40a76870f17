"""A program's signals, whatever its caller has done to them: what is ignored or blocked stays so in what is started."""

import signal
import threading

# Ignored SIGCHLD: the system forgets how a child ended, and subprocess reports that it succeeded. Ignored SIGTERM:
# neither a command nor what it has started can be ended. SIGHUP and SIGINT are not here: nohup, and a shell that starts
# a job in the background, have them ignored on purpose.
_NEVER_IGNORED = ("SIGCHLD", "SIGTERM")


def forget_callers_signals() -> None:
    """Undo what a caller has left behind that nobody means, in the main thread; elsewhere nothing can be done."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in _NEVER_IGNORED:
        number = getattr(signal, name, None)  # Windows lacks SIGCHLD
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
