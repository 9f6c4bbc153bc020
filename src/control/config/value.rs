//! Single values out of their text: sizes, addresses, core lists.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::util::{Bad, bad};

/// Units of a size, largest first.
const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Offsets into files and devices are signed 64 bit in the kernel.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Bytes of a size such as `4096`, `512B`, `64KiB` or `1 GiB`.
///
/// # Errors
/// Anything else, and a size beyond 8 EiB.
pub fn parse_size(text: &str) -> Result<u64, Bad> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start_matches(' '));
    let example = "write whole bytes or a whole number with B, KiB, MiB, GiB or TiB, such as \"1GiB\"";
    if number.is_empty() {
        return bad(format!("\"{text}\" is not a size"), example);
    }
    let factor = if unit.is_empty() {
        1
    } else if let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) {
        *factor
    } else {
        return bad(format!("\"{text}\" is not a size"), size_help(number, unit).unwrap_or_else(|| example.to_owned()));
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|size| *size <= SIZE_MAX)
        .map_or_else(|| bad(format!("\"{text}\" is larger than 8 EiB"), "write a smaller size"), Ok)
}

/// The nearest correct spelling of a number with an unknown unit: `1gb`, `1G` and `1.5GiB` have one.
fn size_help(number: &str, unit: &str) -> Option<String> {
    if let Some(rest) = unit.strip_prefix('.') {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let index = UNITS.iter().position(|(name, _)| name.eq_ignore_ascii_case(rest[digits..].trim()))?;
        let (smaller, _) = UNITS.get(index + 1)?;
        let fraction: f64 = format!("{number}.{}", &rest[..digits]).parse().ok()?;
        let in_smaller = fraction * 1024.0;
        return (in_smaller.fract() == 0.0)
            .then(|| format!("sizes are whole numbers: write \"{in_smaller:.0}{smaller}\""));
    }
    let (name, _) = UNITS.iter().find(|(name, _)| {
        let unit = unit.to_ascii_lowercase();
        let name = name.to_ascii_lowercase();
        unit == name || unit == name.replace('i', "") || unit == name[..1]
    })?;
    Some(format!("units are powers of 1024: write \"{number}{name}\""))
}

/// A time such as `30s` or `2min`.
///
/// # Errors
/// Anything else.
pub(super) fn parse_time(text: &str) -> Result<Duration, Bad> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start_matches(' '));
    let seconds = match unit {
        "s" => Some(1),
        "min" => Some(60),
        _ => None,
    };
    let time = seconds.and_then(|seconds| number.parse::<u64>().ok()?.checked_mul(seconds));
    time.map_or_else(
        || bad(format!("\"{text}\" is not a time"), "write a whole number with s or min, such as \"30s\""),
        |seconds| Ok(Duration::from_secs(seconds)),
    )
}

/// The shortest exact spelling that [`parse_size`] reads back.
pub fn format_size(size: u64) -> String {
    let (unit, factor) =
        *UNITS.iter().find(|(_, factor)| size != 0 && size.is_multiple_of(*factor)).unwrap_or(&UNITS[UNITS.len() - 1]);
    format!("{}{unit}", size / factor)
}

/// An address with a port: `a.b.c.d:port` or `[v6]:port`. `usual` is the port that help names.
///
/// # Errors
/// Anything else; names are not looked up.
pub(super) fn parse_address(text: &str, usual: u16) -> Result<SocketAddr, Bad> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let message = format!("\"{text}\" is not an address with a port");
    if text.parse::<Ipv4Addr>().is_ok() {
        return bad(message, format!("write \"{text}:{usual}\""));
    }
    let inner = text.trim_start_matches('[').trim_end_matches(']');
    if inner.parse::<Ipv6Addr>().is_ok() {
        // `::1:4420` is an address by itself, and more likely one with a port.
        return match inner.rsplit_once(':') {
            Some((host, port)) if inner == text && host.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok() => {
                bad(message, format!("write \"[{host}]:{port}\" or \"[{inner}]:{usual}\""))
            }
            _ => bad(message, format!("write \"[{inner}]:{usual}\"")),
        };
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        if port.parse::<u16>().is_err() && port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() {
            return bad(format!("{port} is not a port"), format!("ports go from 0 to 65535: write \"{host}:{usual}\""));
        }
        if host == "localhost" {
            return bad(message, format!("names are not looked up: write \"127.0.0.1:{port}\""));
        }
    }
    bad(message, format!("write \"127.0.0.1:{usual}\", or \"[::1]:{usual}\" for IPv6"))
}

/// Highest core number this program counts with: beyond the largest machine Linux runs on (`NR_CPUS`).
pub(super) const CORE_MAX: u16 = 8191;

/// Core numbers of a list such as `0-3` or `0,2-3`, in the order of the text, with repeats.
///
/// # Errors
/// Another form, a range that runs backwards, a number above 8191.
pub fn parse_core_list(text: &str) -> Result<Vec<usize>, Bad> {
    let mut cores = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (Some(low), Some(high)) = (parse_core(low), parse_core(high)) else {
            return bad(format!("\"{text}\" is not a list of cores"), "write \"0-3\", \"0,2\" or [0, 2]");
        };
        if low > high {
            return bad(format!("the range \"{part}\" runs backwards"), format!("write \"{high}-{low}\""));
        }
        if high > usize::from(CORE_MAX) {
            return bad(format!("no machine has a core {high}"), format!("cores go from 0 to {CORE_MAX} at most"));
        }
        cores.extend(low..=high);
    }
    Ok(cores)
}

/// Digits only: a sign is no part of a core number.
fn parse_core(text: &str) -> Option<usize> {
    let text = text.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Ascending core numbers as [`parse_core_list`] reads them: `0-3,6`.
pub(super) fn format_core_list(cores: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match ranges.last_mut() {
            Some((_, high)) if *high + 1 == core => *high = core,
            _ => ranges.push((core, core)),
        }
    }
    let spell = |&(low, high): &(usize, usize)| {
        if low == high { low.to_string() } else { format!("{low}-{high}") }
    };
    ranges.iter().map(spell).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4KiB", 4096),
            ("1 GiB", 1 << 30),
            ("10TiB", 10 << 40),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for (text, help) in [
            ("1GB", "units are powers of 1024: write \"1GiB\""),
            ("1g", "units are powers of 1024: write \"1GiB\""),
            ("16 mib", "units are powers of 1024: write \"16MiB\""),
            ("1.5GiB", "sizes are whole numbers: write \"1536MiB\""),
            ("8388608TiB", "write a smaller size"),
            ("99999999999999999999", "write a smaller size"),
        ] {
            assert_eq!(parse_size(text).unwrap_err().help, help, "{text}");
        }
        for text in ["", "GiB", "-1", "1 furlong", " 1", "1GiB ", "0x10", "1.GiB", "1.1.1GiB", "1.5B", "é", "1é"] {
            assert!(parse_size(text).unwrap_err().message.ends_with("is not a size"), "{text}");
        }
    }

    #[test]
    fn sizes_are_spelled_exactly() {
        for (size, text) in
            [(0, "0B"), (512, "512B"), (1 << 30, "1GiB"), (3 << 29, "1536MiB"), (5 << 40, "5TiB"), (4097, "4097B")]
        {
            assert_eq!(format_size(size), text);
            assert_eq!(parse_size(text), Ok(size));
        }
    }

    #[test]
    fn times() {
        for (text, seconds) in [("0s", 0), ("1s", 1), ("30 s", 30), ("2min", 120), ("600s", 600)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "30", "1.5s", "-1s", "1h", "30S", "500ms", " 1s", "99999999999999999999s", "é"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        for text in ["127.0.0.1:4420", "0.0.0.0:0", "[::1]:4420", "[fe80::1%2]:1"] {
            assert_eq!(parse_address(text, 4420).unwrap().to_string(), text);
        }
        for (text, help) in [
            ("127.0.0.1", "write \"127.0.0.1:4420\""),
            ("::1", "write \"[::1]:4420\""),
            ("[::1]", "write \"[::1]:4420\""),
            ("::1:4420", "write \"[::1]:4420\" or \"[::1:4420]:4420\""),
            ("127.0.0.1:70000", "ports go from 0 to 65535: write \"127.0.0.1:4420\""),
            ("localhost:4420", "names are not looked up: write \"127.0.0.1:4420\""),
            ("127.0.0.1:", "write \"127.0.0.1:4420\", or \"[::1]:4420\" for IPv6"),
            ("", "write \"127.0.0.1:4420\", or \"[::1]:4420\" for IPv6"),
        ] {
            assert_eq!(parse_address(text, 4420).unwrap_err().help, help, "{text}");
        }
        assert_eq!(parse_address("10.0.0.1", 3260).unwrap_err().help, "write \"10.0.0.1:3260\"");
    }

    #[test]
    fn core_lists() {
        assert_eq!(parse_core_list("0-3"), Ok(vec![0, 1, 2, 3]));
        assert_eq!(parse_core_list("4, 0-1"), Ok(vec![4, 0, 1]));
        for text in ["", "a", "0-", "-1", "0,,1", "+1", "3-1", "0-4294967295", "99999999999", "0-1-2"] {
            assert!(parse_core_list(text).is_err(), "{text}");
        }
        assert_eq!(format_core_list(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(format_core_list(&[]), "");
    }
}
