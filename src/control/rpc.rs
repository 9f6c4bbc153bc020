//! The control socket: JSON-RPC 2.0, one object a line, over a Unix stream that root and the user of this process alone may use.
//!
//! | what comes | what is answered |
//! |---|---|
//! | a request with an `id` | its result, or an error of the method |
//! | what is no JSON, no request, a method or parameters that there are not | the error of the specification (section 5.1) |
//! | a line of more than [`CONTROL_LINE_MAX`] bytes | an error, and the connection ends |
//! | nothing for [`CONTROL_SILENCE_S`] | the connection ends |
//!
//! Each connection has a thread of its own: a command to a disk may take minutes, and others need not wait for it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::limits::{CONTROL_CONNECTIONS_MAX, CONTROL_LINE_MAX, CONTROL_SILENCE_S};

/// Parse error (JSON-RPC 2.0, section 5.1).
const PARSE_ERROR: i64 = -32700;
/// The JSON is not a request.
const INVALID_REQUEST: i64 = -32600;
/// There is no such method.
const METHOD_NOT_FOUND: i64 = -32601;
/// The parameters are not those of the method.
const INVALID_PARAMS: i64 = -32602;
/// The method failed: of the range that is left to servers.
const FAILED: i64 = -32000;

/// Why a method has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RpcError {
    /// There is no such method.
    Unknown,
    /// Its parameters.
    Params(String),
    /// It failed.
    Failed(String),
}

/// What carries out methods: name and parameters, `null` if there are none. On any thread.
pub type Methods = Arc<dyn Fn(&str, Value) -> Result<Value, RpcError> + Send + Sync>;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    ended: Arc<AtomicBool>,
}

impl Socket {
    /// Listens on `path`, in place of what a process that was killed has left there.
    ///
    /// # Errors
    /// Why not: another process that listens there, and what is there and no socket.
    pub fn listen(path: &Path, methods: Methods) -> Result<Socket, String> {
        let about = |error: io::Error| format!("the control socket {}: {error}", path.display());
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(format!("the control socket {}: something else is there", path.display()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => {
                    return Err(format!("the control socket {}: another process listens there", path.display()));
                }
                // Nobody does any more.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(about)?
                }
                Err(error) => return Err(about(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A boot takes that folder away.
                if let Some(folder) = path.parent().filter(|folder| folder.ends_with("run/reactor") && !folder.exists())
                {
                    fs::create_dir(folder).map_err(about)?;
                }
            }
            Err(error) => return Err(about(error)),
        }
        let listener = UnixListener::bind(path).map_err(about)?;
        let ended = Arc::new(AtomicBool::new(false));
        // From here on dropping it takes the socket away.
        let socket = Socket { path: path.to_owned(), ended: ended.clone() };
        // Who comes before is asked who he is all the same.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(about)?;
        let serve = move || accept(&listener, &methods, &ended);
        std::thread::Builder::new().name("control".to_owned()).spawn(serve).map_err(about)?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // The thread waits for somebody to come.
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, methods: &Methods, ended: &AtomicBool) {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if ended.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else {
            // Too many descriptors, say: the next moment may be better, and a loop that spins is not.
            std::thread::park_timeout(Duration::from_millis(100));
            continue;
        };
        let place = Occupied(connections.clone());
        if connections.fetch_add(1, Ordering::Relaxed) >= CONTROL_CONNECTIONS_MAX {
            let _ = refuse(&stream, "too many connections: try again");
            continue;
        }
        if !is_allowed(&stream) {
            let _ = refuse(&stream, "root and the user of this process alone may ask");
            continue;
        }
        let methods = methods.clone();
        let serve = move || {
            // A connection that breaks has nobody to tell.
            let _ = converse(&stream, &methods);
            drop(place);
        };
        if let Err(error) = std::thread::Builder::new().name("control".to_owned()).spawn(serve) {
            tracing::warn!("a connection to the control socket gets no thread: {error}");
        }
    }
}

/// A connection's place among all.
struct Occupied(Arc<AtomicUsize>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Root, or who runs this process.
fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == own)
}

fn refuse(mut stream: &UnixStream, why: &str) -> io::Result<()> {
    writeln!(stream, "{}", error(Value::Null, FAILED, why))
}

fn error(id: Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}

/// Answers until the other side ends, says nothing for too long, or too much at once.
fn converse(stream: &UnixStream, methods: &Methods) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(CONTROL_SILENCE_S)))?;
    stream.set_write_timeout(Some(Duration::from_secs(CONTROL_SILENCE_S)))?;
    let (mut reader, mut writer, mut line) = (BufReader::new(stream), stream, Vec::new());
    loop {
        line.clear();
        reader.by_ref().take(CONTROL_LINE_MAX as u64).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return match line.len() {
                0 => Ok(()),
                CONTROL_LINE_MAX => {
                    let why = format!("a line has at most {CONTROL_LINE_MAX} bytes");
                    writeln!(writer, "{}", error(Value::Null, INVALID_REQUEST, &why))
                }
                _ => writeln!(writer, "{}", error(Value::Null, PARSE_ERROR, "a request ends with its line")),
            };
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let answer = answer(&line, methods);
        writer.write_all(format!("{answer}\n").as_bytes())?;
    }
}

/// The answer to a line.
fn answer(line: &[u8], methods: &Methods) -> Value {
    let request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(why) => return error(Value::Null, PARSE_ERROR, &format!("this is not JSON: {why}")),
    };
    let Value::Object(mut request) = request else {
        return error(Value::Null, INVALID_REQUEST, "a request is one object");
    };
    let id = match request.remove("id") {
        Some(id @ (Value::Number(_) | Value::String(_))) => id,
        Some(_) => return error(Value::Null, INVALID_REQUEST, "`id` is a number or a string"),
        None => return error(Value::Null, INVALID_REQUEST, "`id` is missing: each request is answered"),
    };
    if request.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return error(id, INVALID_REQUEST, "`jsonrpc` is not \"2.0\"");
    }
    let Some(method) = request.get("method").and_then(Value::as_str).map(str::to_owned) else {
        return error(id, INVALID_REQUEST, "`method` is not a string");
    };
    match methods(&method, request.remove("params").unwrap_or(Value::Null)) {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(RpcError::Unknown) => error(id, METHOD_NOT_FOUND, &format!("there is no method \"{method}\"")),
        Err(RpcError::Params(why)) => error(id, INVALID_PARAMS, &why),
        Err(RpcError::Failed(why)) => error(id, FAILED, &why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods() -> Methods {
        Arc::new(|method, params| match method {
            "echo" => Ok(params),
            "fail" => Err(RpcError::Failed("no".to_owned())),
            "params" => Err(RpcError::Params("wrong".to_owned())),
            _ => Err(RpcError::Unknown),
        })
    }

    /// A socket, what is sent over one connection to it, and the lines that come back until it ends.
    fn exchange(send: &[u8]) -> Vec<Value> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = Socket::listen(&path, methods()).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // It may have ended before all is sent.
        let _ = stream.write_all(send);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut lines = Vec::new();
        for line in BufReader::new(&stream).lines() {
            let Ok(line) = line else { break };
            lines.push(serde_json::from_str(&line).unwrap());
        }
        drop(socket);
        assert!(!path.exists(), "it is taken away");
        lines
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        // A boot has taken the folder away.
        let path = root.path().join("run/reactor/control.sock");
        fs::create_dir(root.path().join("run")).unwrap();
        drop(Socket::listen(&path, methods()).unwrap());
        assert!(path.parent().unwrap().is_dir());
        // Left behind: the listener ends, its file stays.
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::listen(&path, methods()).unwrap();
        let error = Socket::listen(&path, methods()).unwrap_err();
        assert!(error.ends_with("another process listens there"), "{error}");
        drop(socket);
        fs::write(&path, "").unwrap();
        assert!(Socket::listen(&path, methods()).unwrap_err().ends_with("something else is there"));
    }

    #[test]
    fn requests_are_answered_in_turn() {
        let lines = exchange(
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":{\"a\":[1]}}\n\n\
              {\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"fail\"}\n{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"echo\"}\n",
        );
        assert_eq!(lines[0], json!({ "jsonrpc": "2.0", "id": 1, "result": { "a": [1] } }));
        assert_eq!(lines[1], json!({ "jsonrpc": "2.0", "id": "x", "error": { "code": -32000, "message": "no" } }));
        assert_eq!((&lines[2]["id"], &lines[2]["result"], lines.len()), (&json!(3), &Value::Null, 3));
    }

    #[test]
    fn what_is_no_request_is_answered_and_the_next_one_too() {
        for (bad, id, code) in [
            ("nonsense", json!(null), -32700),
            ("{\"jsonrpc\":\"2.0\",\"id\":1", json!(null), -32700),
            ("[]", json!(null), -32600),
            ("7", json!(null), -32600),
            ("{\"jsonrpc\":\"2.0\",\"method\":\"echo\"}", json!(null), -32600),
            ("{\"jsonrpc\":\"2.0\",\"id\":[],\"method\":\"echo\"}", json!(null), -32600),
            ("{\"jsonrpc\":\"1.0\",\"id\":5,\"method\":\"echo\"}", json!(5), -32600),
            ("{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":7}", json!(5), -32600),
            ("{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"eat\"}", json!(5), -32601),
            ("{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"params\"}", json!(5), -32602),
        ] {
            let lines = exchange(format!("{bad}\n{{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"echo\"}}\n").as_bytes());
            assert_eq!((&lines[0]["id"], &lines[0]["error"]["code"]), (&id, &json!(code)), "{bad}");
            assert_eq!((&lines[1]["id"], lines.len()), (&json!(9), 2), "{bad}");
        }
        // Bytes that are no text, and depth without end, are JSON of nobody.
        assert_eq!(exchange(b"\xff\xfe\n")[0]["error"]["code"], json!(-32700));
        assert_eq!(exchange(&[b"[".repeat(60_000), b"\n".to_vec()].concat())[0]["error"]["code"], json!(-32700));
    }

    #[test]
    fn a_line_without_end_ends_the_connection() {
        let lines = exchange(&b"x".repeat(CONTROL_LINE_MAX));
        assert_eq!((&lines[0]["error"]["code"], lines.len()), (&json!(-32600), 1));
        let lines = exchange(b"{\"jsonrpc\":\"2.0\"");
        assert_eq!((&lines[0]["error"]["code"], lines.len()), (&json!(-32700), 1));
    }

    #[test]
    fn a_socket_is_private_and_one_that_was_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::listen(&path, methods()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Socket::listen(&path, methods()).unwrap_err();
        assert!(error.ends_with("another process listens there"), "{error}");
        drop(socket);
        fs::write(&path, "a file").unwrap();
        let error = Socket::listen(&path, methods()).unwrap_err();
        assert!(error.ends_with("something else is there"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
        assert!(Socket::listen(&folder.path().join("none/s"), methods()).is_err());
    }

    #[test]
    fn connections_beyond_the_most_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _socket = Socket::listen(&path, methods()).unwrap();
        let ask = |stream: &mut UnixStream| {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let _ = stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\"}\n");
            let mut line = String::new();
            BufReader::new(&*stream).read_line(&mut line).unwrap();
            line
        };
        let mut all: Vec<UnixStream> =
            (0..CONTROL_CONNECTIONS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert!(all.iter_mut().all(|stream| ask(stream).contains("result")));
        let line = ask(&mut UnixStream::connect(&path).unwrap());
        assert!(line.contains("too many connections"), "{line}");
    }
}
