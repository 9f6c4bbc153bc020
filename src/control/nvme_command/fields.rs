//! Identify data and log pages as JSON, field by field, under the names that nvme-cli gives them. Numbers of 128 bits that are more than 64
//! bits can say are strings.

use serde_json::{Map, Value, json};
use zerocopy::little_endian::U128;

use crate::nvme::spec::{ErrorLogEntry, FirmwareSlotLog, IdentifyController, IdentifyNamespace, PowerState, SmartLog};

/// An object of `name: value`.
macro_rules! object {
    ($($name:literal: $value:expr),* $(,)?) => {{
        let mut map = Map::new();
        $( map.insert($name.to_owned(), json!($value)); )*
        map
    }};
}

fn wide(number: U128) -> Value {
    let number = number.get();
    u64::try_from(number).map_or_else(|_| json!(number.to_string()), |number| json!(number))
}

/// ASCII to its end, which is a NUL or that of the field. What is none is replaced: nothing of it may change a terminal.
fn ascii(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' }).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Identify Controller (Base §5.17.2.1).
pub fn controller(id: &IdentifyController) -> Value {
    let [low, middle, high] = id.ieee;
    let mut map = object! {
        "vid": id.vid.get(),
        "ssvid": id.ssvid.get(),
        "sn": ascii(&id.sn),
        "mn": ascii(&id.mn),
        "fr": ascii(&id.fr),
        "rab": id.rab,
        "ieee": u32::from_le_bytes([low, middle, high, 0]),
        "cmic": id.cmic,
        "mdts": id.mdts,
        "cntlid": id.cntlid.get(),
        "ver": id.ver.get(),
        "rtd3r": id.rtd3r_us.get(),
        "rtd3e": id.rtd3e_us.get(),
        "oaes": id.oaes.get(),
        "ctratt": id.ctratt.get(),
        "rrls": id.rrls.get(),
        "cntrltype": id.cntrltype.0,
        "fguid": uuid::Uuid::from_bytes(id.fguid).to_string(),
        "crdt1": id.crdt_100ms[0].get(),
        "crdt2": id.crdt_100ms[1].get(),
        "crdt3": id.crdt_100ms[2].get(),
        "nvmsr": id.nvmsr,
        "vwci": id.vwci,
        "mec": id.mec,
        "oacs": id.oacs.get(),
        "acl": id.acl_z,
        "aerl": id.aerl_z,
        "frmw": id.frmw,
        "lpa": id.lpa,
        "elpe": id.elpe_z,
        "npss": id.npss_z,
        "avscc": id.avscc,
        "apsta": id.apsta,
        "wctemp": id.wctemp_k.get(),
        "cctemp": id.cctemp_k.get(),
        "mtfa": id.mtfa_100ms.get(),
        "hmpre": id.hmpre.get(),
        "hmmin": id.hmmin.get(),
        "tnvmcap": wide(id.tnvmcap),
        "unvmcap": wide(id.unvmcap),
        "rpmbs": id.rpmbs.get(),
        "edstt": id.edstt_min.get(),
        "dsto": id.dsto,
        "fwug": id.fwug,
        "kas": id.kas_100ms.get(),
        "hctma": id.hctma.get(),
        "mntmt": id.mntmt_k.get(),
        "mxtmt": id.mxtmt_k.get(),
        "sanicap": id.sanicap.get(),
        "hmminds": id.hmminds.get(),
        "hmmaxd": id.hmmaxd.get(),
        "nsetidmax": id.nsetidmax.get(),
        "endgidmax": id.endgidmax.get(),
        "anatt": id.anatt_s,
        "anacap": id.anacap,
        "anagrpmax": id.anagrpmax.get(),
        "nanagrpid": id.nanagrpid.get(),
        "pels": id.pels.get(),
        "domainid": id.domainid.get(),
        "megcap": wide(id.megcap),
        "sqes": id.sqes,
        "cqes": id.cqes,
        "maxcmd": id.maxcmd.get(),
        "nn": id.nn.get(),
        "oncs": id.oncs.get(),
        "fuses": id.fuses.get(),
        "fna": id.fna,
        "vwc": id.vwc,
        "awun": id.awun_z.get(),
        "awupf": id.awupf_z.get(),
        "icsvscc": id.icsvscc,
        "nwpc": id.nwpc,
        "acwu": id.acwu_z.get(),
        "ocfs": id.ocfs.get(),
        "sgls": id.sgls.get(),
        "mnan": id.mnan.get(),
        "maxdna": wide(id.maxdna),
        "maxcna": id.maxcna.get(),
        "subnqn": ascii(&id.subnqn),
        "ioccsz": id.ioccsz_16b.get(),
        "iorcsz": id.iorcsz_16b.get(),
        "icdoff": id.icdoff_16b.get(),
        "fcatt": id.fcatt,
        "msdbd": id.msdbd,
        "ofcs": id.ofcs.get(),
    };
    let states = id.psd.iter().take(usize::from(id.npss_z) + 1).map(power_state);
    map.insert("psds".to_owned(), states.collect());
    Value::Object(map)
}

/// Power State Descriptor (Base §5.17.2.1).
fn power_state(state: &PowerState) -> Value {
    let [read_tput, read_lat, write_tput, write_lat] = state.relative.map(|byte| byte & 0x1f);
    let word = |at: usize| u16::from_le_bytes([state.power[at], state.power[at + 1]]);
    Value::Object(object! {
        "max_power": state.mp.get(),
        "max_power_scale": state.flags & 1,
        "non-operational_state": state.flags >> 1 & 1,
        "entry_lat": state.enlat_us.get(),
        "exit_lat": state.exlat_us.get(),
        "read_tput": read_tput,
        "read_lat": read_lat,
        "write_tput": write_tput,
        "write_lat": write_lat,
        "idle_power": word(0),
        "idle_scale": state.power[2] >> 6,
        "active_power": word(4),
        "active_power_work": state.power[6] & 7,
        "active_scale": state.power[6] >> 6,
    })
}

/// Identify Namespace (NVM §4.1.5.1), and which one it is.
pub fn namespace(nsid: u32, id: &IdentifyNamespace) -> Value {
    let formats =
        id.formats().map(|(_, format)| json!({ "ms": format.ms.get(), "ds": format.lbads, "rp": format.rp & 3 }));
    Value::Object(object! {
        "nsid": nsid,
        "nsze": id.nsze.get(),
        "ncap": id.ncap.get(),
        "nuse": id.nuse.get(),
        "nsfeat": id.nsfeat,
        "nlbaf": id.nlbaf_z,
        "flbas": id.flbas,
        "mc": id.mc,
        "dpc": id.dpc,
        "dps": id.dps,
        "nmic": id.nmic,
        "rescap": id.rescap,
        "fpi": id.fpi,
        "dlfeat": id.dlfeat,
        "nawun": id.nawun_z.get(),
        "nawupf": id.nawupf_z.get(),
        "nacwu": id.nacwu_z.get(),
        "nabsn": id.nabsn_z.get(),
        "nabo": id.nabo.get(),
        "nabspf": id.nabspf_z.get(),
        "noiob": id.noiob.get(),
        "nvmcap": wide(id.nvmcap),
        "npwg": id.npwg_z.get(),
        "npwa": id.npwa_z.get(),
        "npdg": id.npdg_z.get(),
        "npda": id.npda_z.get(),
        "nows": id.nows_z.get(),
        "mssrl": id.mssrl.get(),
        "mcl": id.mcl.get(),
        "msrc": id.msrc_z,
        "anagrpid": id.anagrpid.get(),
        "nsattr": id.nsattr,
        "nvmsetid": id.nvmsetid.get(),
        "endgid": id.endgid.get(),
        "nguid": hex(&id.nguid),
        "eui64": hex(&id.eui64),
        "lbafs": formats.collect::<Vec<_>>(),
    })
}

/// SMART / Health Information (Base §5.16.1.3).
pub fn smart(log: &SmartLog) -> Value {
    let mut map = object! {
        "critical_warning": log.critical_warning,
        "temperature": log.temperature_k.get(),
        "avail_spare": log.available_spare,
        "spare_thresh": log.available_spare_threshold,
        "percent_used": log.percentage_used,
        "endurance_grp_critical_warning_summary": log.endurance_group_summary,
        "data_units_read": wide(log.data_units_read),
        "data_units_written": wide(log.data_units_written),
        "host_read_commands": wide(log.host_read_commands),
        "host_write_commands": wide(log.host_write_commands),
        "controller_busy_time": wide(log.controller_busy_time_min),
        "power_cycles": wide(log.power_cycles),
        "power_on_hours": wide(log.power_on_hours),
        "unsafe_shutdowns": wide(log.unsafe_shutdowns),
        "media_errors": wide(log.media_errors),
        "num_err_log_entries": wide(log.error_log_entries),
        "warning_temp_time": log.warning_temperature_min.get(),
        "critical_comp_time": log.critical_temperature_min.get(),
    };
    for (number, kelvin) in (1..).zip(log.temperature_sensors_k).filter(|(_, kelvin)| kelvin.get() != 0) {
        map.insert(format!("temperature_sensor_{number}"), json!(kelvin.get()));
    }
    let [count1, count2, time1, time2] = log.thermal_management.map(|number| number.get());
    map.extend(object! {
        "thm_temp1_trans_count": count1,
        "thm_temp2_trans_count": count2,
        "thm_temp1_total_time": time1,
        "thm_temp2_total_time": time2,
    });
    Value::Object(map)
}

/// An entry of Error Information (Base §5.16.1.2).
pub fn error(entry: &ErrorLogEntry) -> Value {
    Value::Object(object! {
        "error_count": entry.error_count.get(),
        "sqid": entry.sqid.get(),
        "cmdid": entry.cid.get(),
        "status_field": entry.status.get() >> 1,
        "phase_tag": entry.status.get() & 1,
        "status": format!("{:?}", entry.status()),
        "parm_error_location": entry.parameter_location.get(),
        "lba": entry.lba.get(),
        "nsid": entry.nsid.get(),
        "vs": entry.vendor,
        "trtype": entry.trtype,
        "cs": entry.command_specific.get(),
        "trtype_spec_info": entry.transport_specific.get(),
    })
}

/// Firmware Slot Information (Base §5.16.1.4): revisions by slot, `null` of an empty one.
pub fn firmware(log: &FirmwareSlotLog) -> Value {
    let revisions = (1..=7).map(|slot| log.revision(slot).map(|revision| ascii(revision).trim_end().to_owned()));
    Value::Object(object! {
        "afi": log.afi,
        "active_slot": log.active_slot(),
        "next_slot": log.next_slot(),
        "frs": revisions.collect::<Vec<_>>(),
    })
}

/// The same for people: a line for each field, those of an object in a list behind its place.
pub fn to_text(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, "", value);
    text
}

fn write(text: &mut String, prefix: &str, value: &Value) {
    let Value::Object(map) = value else { return };
    let scalar = |value: &Value| match value {
        Value::String(string) => Some(string.trim_end().to_owned()),
        Value::Array(list) if list.iter().any(Value::is_object) => None,
        Value::Array(list) if list.is_empty() => Some("none".to_owned()),
        Value::Array(list) => Some(
            list.iter()
                .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
                .collect::<Vec<_>>()
                .join(", "),
        ),
        Value::Object(_) => None,
        Value::Null => Some("-".to_owned()),
        other => Some(other.to_string()),
    };
    let width = map.iter().filter(|(_, value)| scalar(value).is_some()).map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in map {
        match (value, scalar(value)) {
            (_, Some(line)) => *text += format!("{prefix}{name:width$} : {line}").trim_end(),
            (Value::Array(list), None) => {
                for (place, one) in list.iter().enumerate() {
                    *text += &format!("{prefix}{name} {place}\n");
                    write(text, &format!("{prefix}  "), one);
                }
                continue;
            }
            (inner, None) => {
                *text += &format!("{prefix}{name}\n");
                write(text, &format!("{prefix}  "), inner);
                continue;
            }
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn numbers_keep_all_their_bits() {
        assert_eq!(wide(U128::new(u128::from(u64::MAX))), json!(u64::MAX));
        assert_eq!(wide(U128::new(1 << 64)), json!("18446744073709551616"));
    }

    #[test]
    fn text_of_a_disk_cannot_change_a_terminal() {
        assert_eq!(ascii(b"S\x1b[31m1  \0x"), "S?[31m1  ");
        assert_eq!((hex(&[0xab, 1]), ascii(&[])), ("ab01".to_owned(), String::new()));
    }

    #[test]
    fn controllers_have_the_fields_of_the_specification() {
        let mut id = IdentifyController::new_zeroed();
        (id.sn, id.ieee, id.npss_z) = (*b"A1                  ", [0, 0x54, 0x52], 1);
        id.tnvmcap.set(1 << 70);
        id.psd[1].flags = 2;
        id.psd[1].power[6] = 0x82;
        let value = controller(&id);
        assert_eq!((&value["sn"], &value["ieee"]), (&json!("A1                  "), &json!(0x52_5400)));
        assert_eq!(value["tnvmcap"], json!((1_u128 << 70).to_string()));
        assert_eq!(value["psds"].as_array().unwrap().len(), 2);
        let state = &value["psds"][1];
        assert_eq!(
            [&state["non-operational_state"], &state["active_power_work"], &state["active_scale"]].map(Value::as_u64),
            [Some(1), Some(2), Some(2)]
        );
    }

    #[test]
    fn sensors_that_are_not_there_are_left_out() {
        let mut log = SmartLog::new_zeroed();
        log.temperature_sensors_k[2].set(300);
        let value = smart(&log);
        assert_eq!(value["temperature_sensor_3"], json!(300));
        assert!(value.get("temperature_sensor_1").is_none());
    }

    #[test]
    fn people_get_lines() {
        let value = json!({
            "sn": "A1   ", "rab": 6, "list": [{ "ms": 0, "ds": 9 }, { "ms": 8, "ds": 12 }], "frs": ["1.0", null], "none": [],
        });
        let expected = "sn   : A1\nrab  : 6\nlist 0\n  ms : 0\n  ds : 9\nlist 1\n  ms : 8\n  ds : 12\nfrs  : 1.0, null\nnone : none\n";
        assert_eq!(to_text(&value), expected);
    }
}
