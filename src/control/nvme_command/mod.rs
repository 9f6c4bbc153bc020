//! `reactor nvme`: the NVMe disks of this machine, for people and scripts.

mod fields;
mod find;
mod hands;
pub mod job;
mod list;
pub mod owner;
pub mod state;
#[cfg(test)]
mod tests;
mod way;

use std::io::{self, Write};
use std::process::ExitCode;

use super::cli::NvmeOptions;
use super::serve::FAILED;
use find::{Found, Meant, Place};
use job::{Job, Way};
use way::{Kernel, Solo};

/// Runs the command and prints its result; the exit code of the process.
pub fn run(options: &NvmeOptions) -> ExitCode {
    match carry_out(&Place::here(), options) {
        Ok(text) => match io::stdout().lock().write_all(text.as_bytes()) {
            // Whoever reads it has enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error.to_string()),
            _ => ExitCode::SUCCESS,
        },
        Err(why) => fail(&why),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("reactor nvme: {why}");
    ExitCode::from(FAILED)
}

fn carry_out(place: &Place, options: &NvmeOptions) -> Result<String, String> {
    match options {
        NvmeOptions::List { json } => {
            let rows = list::rows(place);
            Ok(if *json { format!("{}\n", list::to_json(&rows)) } else { list::to_table(&rows) })
        }
        NvmeOptions::Bind { device, force, json } => {
            let done = hands::bind(place, &find::meant(place, device)?.disk, *force)?;
            Ok(if *json { format!("{}\n", done.to_json()) } else { done.text() })
        }
        NvmeOptions::Unbind { device, force, json } => {
            let mut disk = find::meant(place, device)?.disk;
            if let Some(holder) = disk.holder.take() {
                let params = owner::Params { device: disk.address().to_string(), force: *force, ..Default::default() };
                owner::ask(&holder, disk.address(), "nvme.unbind", &params)?;
            }
            let done = hands::unbind(place, &disk)?;
            Ok(if *json { format!("{}\n", done.to_json()) } else { done.text() })
        }
        NvmeOptions::Job { device, job, force, json } => {
            let Meant { disk, nsid } = find::meant(place, device)?;
            let done = ask(place, &disk, &of_namespace(*job, nsid)?, *force)?;
            Ok(if *json { format!("{done}\n") } else { fields::to_text(&done) })
        }
    }
}

/// The same of the namespace that its name names.
fn of_namespace(job: Job, named: Option<u32>) -> Result<Job, String> {
    let one = |nsid: Option<u32>| match (nsid, named) {
        (Some(nsid), Some(named)) if nsid != named => {
            Err(format!("--nsid {nsid} is another namespace than the one of that name, {named}"))
        }
        (nsid, named) => Ok(nsid.or(named)),
    };
    Ok(match job {
        Job::Identify { nsid } => Job::Identify { nsid: one(nsid)? },
        Job::Format(wanted) => Job::Format(job::Format { nsid: one(wanted.nsid)?, ..wanted }),
        other => other,
    })
}

/// Has a job done by whoever can: the server that holds the disk, the kernel's driver, or this process.
fn ask(place: &Place, disk: &Found, job: &Job, force: bool) -> Result<serde_json::Value, String> {
    if let Some(holder) = &disk.holder {
        let (method, params) = owner::request(disk.address(), job, force);
        return owner::ask(holder, disk.address(), method, &params);
    }
    if disk.function.is_vfio() {
        let mut solo = Solo::open(&disk.function)?;
        let done = job::carry_out(&mut solo, job, force);
        let closed = solo.close();
        return done.and_then(|done| closed.map(|()| done));
    }
    let Some(identity) = &disk.function.identity else {
        let driver = disk.function.driver.as_deref().unwrap_or("no driver");
        return Err(format!(
            "{} is with {driver}: reactor nvme bind or unbind gives it to one that can be asked",
            disk.address()
        ));
    };
    if matches!(job, Job::Format(_) | Job::Reset)
        && let Some(why) = hands::in_use(place, disk, force)
    {
        return Err(why);
    }
    if matches!(job, Job::Format(_)) {
        // Commands that are passed through name blocks, whose size the kernel does not check: they would move more than their data.
        let passing = disk.passing(place);
        if !passing.is_empty() {
            return Err(format!(
                "{}: commands may be passed through by {}: nothing is changed; end them first",
                disk.address(),
                passing.join(", ")
            ));
        }
    }
    let mut kernel = Kernel::open(place, &identity.controller)?;
    let way: &mut dyn Way = &mut kernel;
    job::carry_out(way, job, force)
}
