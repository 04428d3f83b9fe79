"""slim-run: enter the namespaces, install the filter, hand the listener over, exec the command.

The order is what keeps it safe: slimd is there before anything changes, whatever asks the name
service comes before the filter, and no command runs under a filter that nobody supervises. Every
module here counts its imports: starting a command through slim-run may take 120 ms.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from slim.broker.errors import ControlError, KernelFeatureMissing, SlimError
from slim.broker.kernel import seccomp_install
from slim.broker.run import network
from slim.broker.run.launch import Account, become_command
from slim.broker.run.options import Options, parse
from slim.broker.run.session import Session


def main(argv: list[str] | None = None) -> int:
    """The console script. Comes back only if the command could not be started."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # An interrupt ends a waiting slim-run as it would any program, and the filter with it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        error = run(options)
    except SlimError as raised:
        error = raised
    _print(str(error))
    if error.hint:
        _print(f"hint: {error.hint}")
    return error.exit_code


def run(options: Options) -> SlimError:
    """Become the command; comes back, or raises, with what went wrong."""
    account = Account(options.user) if options.user is not None else None
    session = _find_slimd(options)
    if session is None:
        if options.netns is not None:
            _enter(network.open_network(options.netns), options.netns)
    else:
        with session:
            _place_under_slim(session, options)
    # Only now: root's filter needs no no_new_privs, so setuid programs work for the user too.
    if account is not None:
        account.become()
    return become_command(options.command)


def _find_slimd(options: Options) -> Session | None:
    """None: there is no slimd, and the user wants to run without."""
    path = f"{options.run_dir}/run.sock"
    try:
        return Session(path)
    except PermissionError:
        raise ControlError(
            f"not allowed to use slimd at {path}",
            hint="run slim-run as root or as a member of the group that owns the socket",
        ) from None
    except OSError as error:
        problem = f"cannot reach slimd at {path}: {error.strerror or error}"
    if options.fail_open and not options.wants_prepared_namespace:
        _print(f"warning: {problem}: the command runs on the plain overlay")
        return None
    if options.fail_open:
        hint = "only slimd makes a namespace on an overlay; name an existing one with --netns"
    else:
        hint = "start slimd, set --run-dir, or run on the plain overlay with --fail-open"
    raise ControlError(problem, hint=hint)


def _place_under_slim(session: Session, options: Options) -> None:
    """Enter the namespace and put this process under a filter that slimd supervises."""
    try:
        session.describe(options)
        prepared = None
        if options.overlay is not None and options.netns is None:
            prepared, namespace = session.prepare_namespace(options.overlay, options.ip)
            _enter(namespace, None)
        else:
            namespace = network.open_network(options.netns)
            if options.netns is not None:
                _enter(namespace, options.netns)
        pidfd = _open_self()
        listener = _install(session.program)
        try:
            session.register(options, prepared, (namespace, pidfd, listener))
        finally:
            # While we hold a copy, trapped calls would wait for ever if slimd lost its own.
            os.close(listener)
    except OSError as error:
        # If there is a filter by now, it goes with this process.
        raise ControlError(
            f"slimd did not take the command over: {error.strerror or error}",
            hint="slimd's log says more",
        ) from None


def _enter(namespace: int, netns: str | None) -> None:
    for problem in network.enter_network(namespace, netns):
        _print(f"warning: {problem}")


def _open_self() -> int:
    try:
        return os.pidfd_open(os.getpid())
    except OSError as error:
        raise KernelFeatureMissing(
            f"cannot open a pidfd of slim-run itself: {error.strerror}",
            hint="Slim needs Linux 5.9; inside a container its seccomp profile must allow pidfds",
        ) from None


def _install(program: bytes) -> int:
    """Install the filter; gives the listener, which the caller owns."""
    try:
        return seccomp_install.install_filter(program)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise _filter_error(error) from None
    # Without CAP_SYS_ADMIN the kernel wants a promise that no program gains privileges.
    _print("not run as root: setuid programs (sudo, ping) will not gain privileges")
    try:
        seccomp_install.set_no_new_privs()
        return seccomp_install.install_filter(program)
    except OSError as error:
        raise _filter_error(error) from None


def _filter_error(error: OSError) -> SlimError:
    if error.errno == errno.EBUSY:
        return SlimError(
            "cannot trap the command's socket calls: another seccomp agent traps for this process",
            hint="the kernel allows one per process: do not start slim-run under another slim-run,"
            " nor in a container whose runtime traps calls itself (bypass4netns, LXD, Incus)",
        )
    return KernelFeatureMissing(
        f"cannot install the seccomp filter: {error}",
        hint="Slim needs Linux 5.9; inside a container its seccomp profile must allow seccomp(2)",
    )


def _print(text: str) -> None:
    # Python has no stderr when the file was closed at the start; print would use stdout then.
    if sys.stderr is not None:
        print(f"slim-run: {text}", file=sys.stderr)
