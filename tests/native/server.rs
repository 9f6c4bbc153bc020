//! The program as a child process: its configuration, its output, its end.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use reactor::sys::tsc::monotonic_ns;
use tempfile::TempDir;

/// For whatever has no bound of its own.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that an orderly end may take.
pub const END_LIMIT: Duration = Duration::from_secs(2);

/// Subsystem `number` of the configurations here.
pub fn nqn(number: usize) -> String {
    format!("nqn.2026-11.io.reactor:vol{number}")
}

/// Time since an arbitrary start.
pub fn now() -> Duration {
    Duration::from_nanos(monotonic_ns())
}

/// How often [`until`] looks.
const LOOK: Duration = Duration::from_millis(2);

/// Waits until `done`, at most `limit`. Says whether it came, and how long this thread was kept from looking: what a loaded
/// machine takes from a process that has little to do.
pub fn until(limit: Duration, mut done: impl FnMut() -> bool) -> (bool, Duration) {
    let start = now();
    let (mut looked, mut late) = (start, Duration::ZERO);
    loop {
        if done() {
            return (true, late);
        }
        if now() - start > limit {
            return (false, late);
        }
        std::thread::park_timeout(LOOK);
        late += (now() - looked).saturating_sub(2 * LOOK);
        looked = now();
    }
}

/// A directory with a configuration, gone at the end.
pub struct Place {
    dir: TempDir,
}

impl Place {
    /// An empty directory on the file system of the build, which is not a RAM disk where /tmp may be one.
    pub fn new() -> Place {
        Place::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// An empty directory in `parent`.
    pub fn new_in(parent: &Path) -> Place {
        Place { dir: TempDir::new_in(parent).unwrap() }
    }

    /// Where `name` is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration.
    pub fn configure(&self, text: &str) -> PathBuf {
        let path = self.path("poll.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts the program on a configuration and waits until it is ready.
    pub fn serve(&self, text: &str) -> Server {
        let config = self.configure(text);
        Server::ready(Program::run(reactor(&["--config"]).arg(config)))
    }

    /// Starts the program on a configuration that it is to refuse or fail on.
    pub fn program(&self, text: &str) -> Program {
        let config = self.configure(text);
        Program::run(reactor(&["--config"]).arg(config))
    }
}

/// The program with some words on its command line.
pub fn reactor(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reactor"));
    command.args(words);
    command
}

/// The lines that a stream of the program has brought so far.
pub struct Lines {
    arriving: mpsc::Receiver<String>,
    seen: Vec<String>,
    /// Lines before this have been found by [`Lines::next_with`].
    cursor: usize,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Lines {
        let (sender, arriving) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                // Nobody may be listening any more.
                if line.is_err() || line.is_ok_and(|line| sender.send(line).is_err()) {
                    return;
                }
            }
        });
        Lines { arriving, seen: Vec::new(), cursor: 0 }
    }

    /// The next line that has `text` in it, after the one found before; `None` if none comes within `limit`.
    pub fn next_with(&mut self, text: &str, limit: Duration) -> Option<&str> {
        let start = now();
        loop {
            while self.cursor < self.seen.len() {
                self.cursor += 1;
                if self.seen[self.cursor - 1].contains(text) {
                    return Some(&self.seen[self.cursor - 1]);
                }
            }
            let left = limit.saturating_sub(now() - start);
            self.seen.push(self.arriving.recv_timeout(left).ok()?);
        }
    }

    /// All lines to the end of the stream.
    pub fn all(&mut self) -> &[String] {
        while let Ok(line) = self.arriving.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        &self.seen
    }
}

/// A running program.
pub struct Program {
    child: Child,
    /// When it was last told to end.
    signalled: Option<Duration>,
    /// Standard output.
    pub out: Lines,
    /// Standard error.
    pub err: Lines,
}

impl Program {
    /// Starts it.
    pub fn run(command: &mut Command) -> Program {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = Lines::of(child.stdout.take().unwrap());
        let err = Lines::of(child.stderr.take().unwrap());
        Program { child, signalled: None, out, err }
    }

    /// Its resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name without SIG.
    pub fn signal(&mut self, name: &str) {
        self.signalled = Some(now());
        let line = format!("kill -s {name} {}", self.pid());
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success(), "{line}");
    }

    /// Waits for its end; how it ended and how long that took since the last signal, or else since now, without what the
    /// machine was late.
    ///
    /// # Panics
    /// If it does not end: it is killed then.
    pub fn end(&mut self, limit: Duration) -> (ExitStatus, Duration) {
        let start = self.signalled.unwrap_or_else(now);
        let mut status = None;
        let (_, late) = until(limit, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        match status {
            Some(status) => (status, (now() - start).saturating_sub(late)),
            None => {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                panic!("no end within {limit:?}; standard error:\n{}", self.err.all().join("\n"));
            }
        }
    }

    /// Waits for its end, which is to be this exit code; its standard error.
    pub fn ends_with(&mut self, code: i32) -> String {
        let (status, _) = self.end(PATIENCE);
        let text = self.err.all().join("\n");
        assert_eq!(status.code(), Some(code), "{status}, standard error:\n{text}");
        text
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // A test that failed before it ended its program.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- standard error of the program:\n{}", self.err.all().join("\n"));
        }
    }
}

/// A program that serves.
pub struct Server {
    /// The process.
    pub program: Program,
    /// Its NVMe/TCP listeners, as printed.
    pub addresses: Vec<SocketAddr>,
    /// Its iSCSI portals, as printed, each once.
    pub portals: Vec<SocketAddr>,
}

impl Server {
    /// Waits until the program accepts hosts.
    pub fn ready(mut program: Program) -> Server {
        if program.out.next_with("reactor: ready", PATIENCE).is_none() {
            panic!("not ready; standard output: {:?}", program.out.seen);
        }
        let words = |line: &String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let portals = program.out.seen.iter().filter(|line| line.starts_with("iscsiadm ")).filter_map(|line| {
            let place = line.split(' ').skip_while(|word| *word != "-p").nth(1)?;
            Some(place.parse().unwrap_or_else(|e| panic!("{line}: {e}")))
        });
        let portals = portals.fold(Vec::new(), |mut all, one| {
            if !all.contains(&one) {
                all.push(one);
            }
            all
        });
        let addresses = program.out.seen.iter().map(words).filter(|words| words[0] == "nvme" && words[1] == "discover");
        let addresses = addresses.map(|words| format!("[{}]:{}", words[5], words[7]));
        let parse = |text: String| text.parse().or_else(|_| text.replace(['[', ']'], "").parse()).unwrap();
        Server { addresses: addresses.map(parse).collect(), portals, program }
    }

    /// Its first listener.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Ends it in order.
    pub fn stop(mut self) {
        self.program.signal("TERM");
        self.ended();
    }

    /// It was told to end: it does so in order, in time, and silently.
    pub fn ended(&mut self) -> Duration {
        let (status, took) = self.program.end(PATIENCE);
        let text = self.program.err.all().join("\n");
        assert_eq!((status.code(), status.signal()), (Some(0), None), "standard error:\n{text}");
        let is_error = |line: &str| line.split_whitespace().nth(1) == Some("ERROR");
        assert!(!text.lines().any(is_error), "{text}");
        assert!(took <= END_LIMIT, "the end took {took:?}:\n{text}");
        took
    }
}

/// Whether this is root, who may become somebody else.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The bytes of a file.
pub fn bytes_of(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
