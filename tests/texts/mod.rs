//! Configurations out of texts, for the tests of what they mean.

use std::path::Path;

use reactor::control::config::{Change, Machine, Parsed, Source, Style, parse};

pub fn machine() -> Machine {
    Machine { online: vec![0, 1, 2, 3], allowed: vec![0, 1, 2] }
}

/// What a text means that is correct.
pub fn parsed_in(folder: impl AsRef<Path>, text: &str) -> Parsed {
    let source = Source::new("poll.toml", folder.as_ref(), text);
    parse(&source, &machine()).unwrap_or_else(|errors| {
        let said: String = errors.iter().map(|error| error.render(&source, Style::Plain)).collect();
        panic!("{said}")
    })
}

pub fn said(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

/// A volume of one block in a file.
pub fn file(name: &str, path: &str) -> String {
    format!("[[bdev]]\nname = \"{name}\"\ndriver = \"file\"\npath = \"{path}\"\nsize = 512\n")
}
