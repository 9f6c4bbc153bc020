//! The log: to stderr, by a thread of its own, so that no reactor ever waits for whoever reads it.

use std::cell::RefCell;
use std::io::IsTerminal;

use tracing_appender::non_blocking::WorkerGuard;

thread_local! {
    /// Dropping it writes what is left.
    static GUARD: RefCell<Option<WorkerGuard>> = const { RefCell::new(None) };
}

/// Starts the log; to be called once, by the main thread, which alone may end it.
pub fn start() {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    GUARD.with(|g| *g.borrow_mut() = Some(guard));
    // journald stamps its lines itself; a terminal and a file want the time.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt().with_writer(writer).with_target(false);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    let set = if journal { builder.without_time().try_init() } else { builder.try_init() };
    // Somebody who embeds this may have a log of his own.
    drop(set);
}

/// Writes what is left.
pub fn flush() {
    GUARD.with(|g| g.borrow_mut().take());
}

/// Writes what is left and ends the process at once, whatever else runs.
pub fn flush_and_exit(code: u8) -> ! {
    flush();
    std::process::exit(i32::from(code))
}
