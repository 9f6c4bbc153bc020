//! The text of a configuration file, places in it, and messages that point at them.

use std::fmt::Write as _;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use unicode_width::UnicodeWidthChar as _;

/// Bytes of the text.
pub(super) type Span = Range<usize>;

/// A larger file is no configuration: `--config /dev/zero` ends here.
const FILE_SIZE_MAX: u64 = 4 << 20;

/// A configuration file in memory.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name as the user wrote it.
    name: String,
    /// The folder that relative paths start from, absolute.
    folder: PathBuf,
    text: String,
}

impl Source {
    /// Text that came from somewhere else than a file; relative paths start from `folder`.
    pub fn new(name: impl Into<String>, folder: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { name: name.into(), folder: folder.into(), text: text.into() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// One whole message, rendered plain, where the file cannot be read, is larger than 4 MiB or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        let failed = |error: std::io::Error| {
            format!("{name}: cannot read the configuration: {error}\n   help: give the file's name after --config\n")
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_SIZE_MAX {
            return Err(format!("{name}: larger than 4 MiB, so not a configuration\n   help: name a TOML file\n"));
        }
        let folder = std::path::absolute(path)
            .ok()
            .and_then(|path| path.parent().map(Path::to_path_buf))
            .unwrap_or_else(|| PathBuf::from("/"));
        String::from_utf8(bytes).map(|text| Self { name: name.clone(), folder: folder.clone(), text }).map_err(
            |error| {
                let at = error.utf8_error().valid_up_to();
                let source = Self::new(name, folder, String::from_utf8_lossy(error.as_bytes()));
                let span = at..at + char::REPLACEMENT_CHARACTER.len_utf8();
                Diagnostic::error(span, "the file is not UTF-8 text", "save it as UTF-8").render(&source, Style::Plain)
            },
        )
    }

    /// The name as the user wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A path of the file as an absolute one.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Line and column of a byte; beyond the text, its end.
    pub(super) fn place(&self, at: usize) -> Place {
        let before = &self.text[..self.text.floor_char_boundary(at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            line: narrow(before.matches('\n').count() + 1),
            column: narrow(before[line_start..].chars().count() + 1),
        }
    }
}

/// The text is at most 4 MiB where it comes from a file, so the count fits.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A place in the text, both numbers from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Character in the line, from 1.
    pub column: u32,
}

/// Whether a message carries terminal colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text only.
    Plain,
    /// ANSI colours.
    Terminal,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Error,
    Warning,
}

/// One message about one place of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    span: Span,
    severity: Severity,
    message: String,
    help: String,
}

impl Diagnostic {
    pub(super) fn error(span: Span, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { span, severity: Severity::Error, message: message.into(), help: help.into() }
    }

    pub(super) fn warning(span: Span, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message, help) }
    }

    /// First byte it is about; the order of messages.
    pub(super) fn start(&self) -> usize {
        self.span.start
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to write instead.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// Where it starts.
    pub fn place(&self, source: &Source) -> Place {
        source.place(self.span.start)
    }

    /// `FILE:LINE:COLUMN: message`, the line with a caret under the place, and a `help:` line; ends in a newline.
    pub fn render(&self, source: &Source, style: Style) -> String {
        let place = self.place(source);
        let (bold, mark, reset) = match (style, self.severity) {
            (Style::Plain, _) => ("", "", ""),
            (Style::Terminal, Severity::Error) => ("\x1b[1m", "\x1b[1;31m", "\x1b[0m"),
            (Style::Terminal, Severity::Warning) => ("\x1b[1m", "\x1b[1;33m", "\x1b[0m"),
        };
        let prefix = match self.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        let line = source.text.lines().nth(place.line as usize - 1).unwrap_or("");
        let line_start = source.text.floor_char_boundary(self.span.start) - before_in_line(line, place);
        let marked = self.span.end.saturating_sub(line_start).min(line.len());
        let mut gutter = place.line.to_string();
        let mut out = format!(
            "{bold}{}:{gutter}:{}: {prefix}{}{reset}\n{gutter} | {}\n",
            source.name,
            place.column,
            printable(&self.message),
            printable(line)
        );
        gutter.replace_range(.., &" ".repeat(gutter.len()));
        let indent: usize = columns(line.chars().take(place.column as usize - 1));
        let from = line.floor_char_boundary(before_in_line(line, place));
        let width = columns(line[from..line.floor_char_boundary(marked).max(from)].chars()).max(1);
        let _ = writeln!(out, "{gutter} | {}{mark}{}{reset}", " ".repeat(indent), "^".repeat(width));
        let _ = writeln!(out, "{gutter} {bold}help:{reset} {}", printable(&self.help));
        out
    }
}

/// Bytes of `line` before the place.
fn before_in_line(line: &str, place: Place) -> usize {
    line.chars().take(place.column as usize - 1).map(char::len_utf8).sum()
}

/// Cells of the terminal that `printable` of these characters takes.
fn columns(chars: impl Iterator<Item = char>) -> usize {
    chars.map(|c| c.width().unwrap_or(1)).sum()
}

/// Text of the file goes to a terminal: no control character may reach it. A tab becomes one blank, so that carets fit.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("poll.toml", "/", text)
    }

    #[test]
    fn the_caret_stands_under_wide_characters_and_tabs() {
        let text = "a = 1\n\tname = \"数据\" # x\n";
        let at = text.find("# x").unwrap();
        let got = Diagnostic::error(at..at + 3, "m", "h").render(&source(text), Style::Plain);
        assert_eq!(got, "poll.toml:2:14: m\n2 |  name = \"数据\" # x\n  |                ^^^\n  help: h\n");
    }

    #[test]
    fn a_span_over_several_lines_marks_its_first_line_only() {
        let text = "x = [\n 1,\n]\n";
        let got = Diagnostic::error(4..text.len(), "m", "h").render(&source(text), Style::Plain);
        assert_eq!(got, "poll.toml:1:5: m\n1 | x = [\n  |     ^\n  help: h\n");
    }

    #[test]
    fn the_end_of_the_text_has_a_place() {
        let got = Diagnostic::error(3..3, "m", "h").render(&source("ab\n"), Style::Plain);
        assert_eq!(got, "poll.toml:2:1: m\n2 | \n  | ^\n  help: h\n");
        let past = Diagnostic::error(90..95, "m", "h");
        assert_eq!(past.place(&source("ab")), Place { line: 1, column: 3 });
        assert!(past.render(&source("ab"), Style::Plain).contains("1 | ab\n"));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let text = "x = \"\x1b[31m\"";
        let got = Diagnostic::warning(4..5, "a \x1b b", "h").render(&source(text), Style::Plain);
        assert!(!got.contains('\x1b'), "{got:?}");
        assert!(got.starts_with("poll.toml:1:5: warning: a \u{fffd} b\n"));
        let colours = Diagnostic::error(0..1, "m", "h").render(&source("x"), Style::Terminal);
        assert!(colours.contains("\x1b[1;31m^\x1b[0m"));
    }

    #[test]
    fn unreadable_files_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("poll.toml");
        let error = Source::read(&path).unwrap_err();
        assert!(error.contains("cannot read the configuration: No such file"), "{error}");
        std::fs::write(&path, b"a = 1\nb = \"\xff\"\n").unwrap();
        let error = Source::read(&path).unwrap_err();
        assert!(
            error.contains("poll.toml:2:6: the file is not UTF-8 text\n2 | b = \"\u{fffd}\"\n  |      ^\n"),
            "{error}"
        );
        let error = Source::read(Path::new("/dev/zero")).unwrap_err();
        assert!(error.contains("larger than 4 MiB"), "{error}");
    }
}
