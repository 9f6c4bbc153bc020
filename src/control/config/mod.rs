//! The configuration file: TOML text in, a validated [`Config`] or messages with places out.
//!
//! | step | needs | gives |
//! |---|---|---|
//! | [`Source::read`] | the file | text |
//! | [`parse()`] | the text and the cores of the [`Machine`] | [`Parsed`]: the [`Config`], warnings, places |
//! | [`Parsed::probe`] | a look at the paths of file volumes and of the iSCSI door | secrets, and what does not fit there |
//! | [`diff()`] | the running configuration and the new one | what a reload changes, what it must leave |
//!
//! [`load`] does the first three. Each step reports every independent error it can find; each error has a place in the
//! file, and says what to write instead. Nothing is created here, and nothing but secrets is opened.

mod bdev;
mod diff;
mod iscsi;
mod machine;
mod model;
mod nvme;
mod nvmf;
mod parse;
mod probe;
mod reader;
mod source;
mod ublk;
mod value;

use std::path::Path;

pub use self::bdev::derived_uuid;
pub use self::diff::{Change, Diff, diff};
pub use self::iscsi::{IscsiChange, IscsiSteps, TargetKey};
pub use self::machine::Machine;
pub use self::model::{
    BdevConfig, Chap, Config, Driver, HostAccess, Hugepages, Idle, InjectAction, InjectOp, InjectRule, InjectStatus,
    IscsiConfig, IscsiPortal, IscsiTarget, Listener, Lun, MemoryConfig, MutualChap, Namespace, NullComplete,
    NvmfConfig, ReactorConfig, Subsystem, Trigger, UblkConfig, UblkMode,
};
pub use self::parse::{Parsed, parse};
pub use self::source::{Diagnostic, Place, Source, Style};
pub use self::value::{format_size, parse_core_list, parse_size};

/// A configuration that may be started (or, with `running`, reloaded), and its warnings.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Rendered warnings, each ending in a newline.
    pub warnings: Vec<String>,
}

/// Reads, parses and probes a configuration file. `running` is the configuration in service on a reload, `None` at start
/// and for `--check`.
///
/// # Errors
/// Rendered messages, each ending in a newline: a configuration error, so exit code 2 at start.
pub fn load(path: &Path, machine: &Machine, running: Option<&Config>, style: Style) -> Result<Loaded, Vec<String>> {
    let source = Source::read(path).map_err(|message| vec![message])?;
    let render = |list: Vec<Diagnostic>| list.iter().map(|one| one.render(&source, style)).collect::<Vec<_>>();
    let mut parsed = parse(&source, machine).map_err(render)?;
    let misfits = parsed.probe(running);
    if misfits.is_empty() {
        Ok(Loaded { config: parsed.config, warnings: render(parsed.warnings) })
    } else {
        Err(render(misfits))
    }
}
