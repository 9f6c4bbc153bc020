//! Asking the server that holds a disk, over its control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::find::Holder;
use super::job::{Erase, Format, Job, LogPage};
use crate::limits::{CONTROL_LINE_MAX, NVME_FORMAT_NS};
use crate::sys::pci::Address;

/// What the answer may take beyond the longest command.
const SLACK: Duration = Duration::from_secs(120);

/// Parameters of the methods of NVMe disks. A method takes those that it has a use for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// PCI address of the disk.
    pub device: String,
    /// Namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// Log page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<LogPage>,
    /// LBA format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lbaf: Option<u8>,
    /// Bytes of a block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// What a format erases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erase: Option<Erase>,
    /// Also if volumes of the disk are in use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// The method of a job, and its parameters.
pub fn request(address: Address, job: &Job, force: bool) -> (&'static str, Params) {
    let params = Params { device: address.to_string(), force, ..Params::default() };
    match *job {
        Job::Identify { nsid } => ("nvme.identify", Params { nsid, ..params }),
        Job::Smart => ("nvme.smart", params),
        Job::Log(page) => ("nvme.log", Params { page: Some(page), ..params }),
        Job::Format(Format { nsid, lbaf, block_size, erase }) => {
            ("nvme.format", Params { nsid, lbaf, block_size, erase: Some(erase), ..params })
        }
        Job::Reset => ("nvme.reset", params),
    }
}

/// The job of a method and its parameters; `None` of another method.
///
/// # Errors
/// Which parameter is missing, or not of this method.
pub fn job(method: &str, params: &Params) -> Option<Result<Job, String>> {
    let Params { device: _, nsid, page, lbaf, block_size, erase, force } = params;
    let (job, mut surplus) = match method {
        "nvme.identify" => (Job::Identify { nsid: *nsid }, vec![("force", *force)]),
        "nvme.smart" => (Job::Smart, vec![("nsid", nsid.is_some()), ("force", *force)]),
        "nvme.log" => match page {
            Some(page) => (Job::Log(*page), vec![("nsid", nsid.is_some()), ("force", *force)]),
            None => return Some(Err("`page` is missing: write \"error\" or \"firmware\"".to_owned())),
        },
        "nvme.format" => {
            let wanted = Format { nsid: *nsid, lbaf: *lbaf, block_size: *block_size, erase: erase.unwrap_or_default() };
            (Job::Format(wanted), Vec::new())
        }
        "nvme.reset" => (Job::Reset, vec![("nsid", nsid.is_some())]),
        _ => return None,
    };
    if method != "nvme.format" {
        surplus.extend([("lbaf", lbaf.is_some()), ("block_size", block_size.is_some()), ("erase", erase.is_some())]);
    }
    if method != "nvme.log" {
        surplus.push(("page", page.is_some()));
    }
    match surplus.iter().find(|(_, there)| *there) {
        Some((name, _)) => Some(Err(format!("`{name}` is no parameter of {method}"))),
        None => Some(Ok(job)),
    }
}

/// Asks the holder of a disk.
///
/// # Errors
/// If it cannot be asked, with what is to be done about that; what it says itself.
pub fn ask(holder: &Holder, address: Address, method: &str, params: &Params) -> Result<Value, String> {
    let name = holder.name();
    let Some(owned) = holder.owned() else {
        return Err(format!(
            "{address} is held by {name}, which cannot be asked: it has no control socket that it told of"
        ));
    };
    let Some(socket) = &owned.socket else {
        let config = &owned.config;
        return Err(format!(
            "{address} is held by {name}, which has no control socket: add [control] with socket = \"/run/reactor/control.sock\" to \
             {config} and start it again, or stop it"
        ));
    };
    call(socket, method, params).map_err(|why| format!("{name}: {why}"))
}

/// One request over a control socket.
///
/// # Errors
/// If there is no answer; what the answer says.
pub fn call(socket: &Path, method: &str, params: &Params) -> Result<Value, String> {
    let about = |error: std::io::Error| format!("its control socket {}: {error}", socket.display());
    let mut stream = UnixStream::connect(socket).map_err(about)?;
    stream.set_read_timeout(Some(Duration::from_nanos(NVME_FORMAT_NS) + SLACK)).map_err(about)?;
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    stream.write_all(format!("{request}\n").as_bytes()).map_err(about)?;
    let mut line = Vec::new();
    // Answers may be longer than questions: all namespaces of a disk.
    let most = 256 * CONTROL_LINE_MAX as u64;
    BufReader::new(stream.take(most)).read_until(b'\n', &mut line).map_err(about)?;
    let answer: Value = serde_json::from_slice(&line)
        .map_err(|_| format!("its control socket {}: an answer that is none", socket.display()))?;
    match (answer.get("result"), answer["error"]["message"].as_str()) {
        (Some(result), _) => Ok(result.clone()),
        (None, Some(message)) => Err(message.to_owned()),
        (None, None) => Err(format!("its control socket {}: an answer that is none", socket.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_travel_as_methods_and_back() {
        let address: Address = "0000:01:00.0".parse().unwrap();
        let format = Format { nsid: Some(2), lbaf: Some(4), block_size: None, erase: Erase::Crypto };
        for (job_, force) in [
            (Job::Identify { nsid: Some(3) }, false),
            (Job::Identify { nsid: None }, false),
            (Job::Smart, false),
            (Job::Log(LogPage::Error), false),
            (Job::Log(LogPage::Firmware), false),
            (Job::Format(format), true),
            (Job::Reset, true),
        ] {
            let (method, params) = request(address, &job_, force);
            let wire = serde_json::to_string(&params).unwrap();
            let back: Params = serde_json::from_str(&wire).unwrap();
            assert_eq!((back.device.as_str(), back.force), ("0000:01:00.0", force));
            assert_eq!(job(method, &back), Some(Ok(job_)), "{wire}");
        }
    }

    #[test]
    fn parameters_that_a_method_has_no_use_for_are_refused() {
        let params = |text: &str| serde_json::from_str::<Params>(text);
        for (method, text, says) in [
            ("nvme.smart", r#"{"device": "x", "nsid": 1}"#, "`nsid` is no parameter of nvme.smart"),
            ("nvme.reset", r#"{"device": "x", "lbaf": 1}"#, "`lbaf` is no parameter of nvme.reset"),
            ("nvme.format", r#"{"device": "x", "page": "error"}"#, "`page` is no parameter of nvme.format"),
            ("nvme.identify", r#"{"device": "x", "force": true}"#, "`force` is no parameter of nvme.identify"),
            ("nvme.log", r#"{"device": "x"}"#, "`page` is missing: write \"error\" or \"firmware\""),
        ] {
            assert_eq!(job(method, &params(text).unwrap()), Some(Err(says.to_owned())));
        }
        assert_eq!(job("nvme.eat", &params(r#"{"device": "x"}"#).unwrap()), None);
        assert!(params(r#"{"device": "x", "colour": 1}"#).is_err());
        assert!(params(r#"{"device": "x", "page": "smart"}"#).is_err());
    }
}
