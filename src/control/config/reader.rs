//! Typed access to a parsed TOML table. What does not fit becomes a message at its place, and reading goes on, so that
//! one pass finds every independent error.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use toml::de::{DeTable, DeValue};

use super::source::{Diagnostic, Span};
use super::value::parse_size;
use crate::util::Bad;

/// The messages of one pass.
#[derive(Default)]
pub(super) struct Messages {
    list: RefCell<Vec<Diagnostic>>,
}

impl Messages {
    /// Notes an error.
    pub(super) fn error(&self, span: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.list.borrow_mut().push(Diagnostic::error(span.clone(), message, help));
    }

    /// Notes a warning.
    pub(super) fn warning(&self, span: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.list.borrow_mut().push(Diagnostic::warning(span.clone(), message, help));
    }

    /// The value, or a message at `span`.
    pub(super) fn accept<T>(&self, span: &Span, result: Result<T, Bad>) -> Option<T> {
        result.map_err(|bad| self.error(span, bad.message, bad.help)).ok()
    }

    /// All of them in the order of the text.
    pub(super) fn into_sorted(self) -> Vec<Diagnostic> {
        let mut list = self.list.into_inner();
        list.sort_by_key(Diagnostic::start);
        list
    }
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// A key, and the help for who gets its value wrong.
#[derive(Clone, Copy)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
}

impl Key {
    pub(super) const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help }
    }
}

/// A value of the file, not yet of a type.
#[derive(Clone)]
pub(super) struct Value<'a> {
    pub(super) span: Span,
    raw: &'a DeValue<'a>,
    /// What it is called in messages.
    name: String,
    help: &'static str,
    pub(super) messages: &'a Messages,
}

impl<'a> Value<'a> {
    fn wrong_type<T>(&self, wanted: &str) -> Option<T> {
        let is = match self.raw {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.messages.error(&self.span, format!("{} must be {wanted}, not {is}", self.name), self.help);
        None
    }

    fn at<T>(&self, value: T) -> At<T> {
        At { value, span: self.span.clone() }
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What to write instead.
    pub(super) fn help(&self) -> &'static str {
        self.help
    }

    /// The text, where it is one; no message otherwise.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.raw.as_str()
    }

    pub(super) fn text(&self) -> Option<At<&'a str>> {
        self.as_text().map_or_else(|| self.wrong_type("a string"), |text| Some(self.at(text)))
    }

    pub(super) fn boolean(&self) -> Option<At<bool>> {
        self.raw.as_bool().map_or_else(|| self.wrong_type("true or false"), |value| Some(self.at(value)))
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<At<u64>> {
        let Some(integer) = self.raw.as_integer() else {
            return self.wrong_type("an integer");
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) if range.contains(&value) => Some(self.at(value)),
            _ => {
                let message = if *range.end() == u64::MAX {
                    format!("{} must be at least {}, not {integer}", self.name, range.start())
                } else {
                    format!("{} must be from {} to {}, not {integer}", self.name, range.start(), range.end())
                };
                self.messages.error(&self.span, message, self.help);
                None
            }
        }
    }

    /// Bytes: an integer, or a string with a unit.
    pub(super) fn size(&self) -> Option<At<u64>> {
        let text = match self.raw {
            DeValue::String(text) => text.as_ref(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
            DeValue::Integer(_) => return self.integer(0..=i64::MAX as u64),
            _ => return self.wrong_type("whole bytes or a string"),
        };
        self.messages.accept(&self.span, parse_size(text)).map(|size| self.at(size))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<At<T>> {
        let text = self.text()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(self.at(*value));
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let help = match nearest(text.value, &names) {
            Some(word) => format!("write \"{word}\"; {} is {}", self.name, one_of(&names)),
            None => format!("write {}", one_of(&names)),
        };
        self.messages.error(&self.span, format!("{} cannot be \"{}\"", self.name, text.value), help);
        None
    }

    pub(super) fn array(&self) -> Option<Vec<Value<'a>>> {
        self.array_or("an array")
    }

    /// An array, where `wanted` names what else the caller takes.
    pub(super) fn array_or(&self, wanted: &str) -> Option<Vec<Value<'a>>> {
        let Some(array) = self.raw.as_array() else {
            return self.wrong_type(wanted);
        };
        let element = |item: &'a toml::Spanned<DeValue<'a>>| Value {
            span: item.span(),
            raw: item.get_ref(),
            name: format!("an entry of {}", self.name),
            help: self.help,
            messages: self.messages,
        };
        Some(array.iter().map(element).collect())
    }

    /// A table called `title` in messages.
    pub(super) fn table(&self, title: impl Into<String>) -> Option<Table<'a>> {
        let Some(items) = self.raw.as_table() else {
            return self.wrong_type("a table");
        };
        Some(Table::new(items, self.span.clone(), title, self.messages))
    }

    /// The tables of a `[[...]]`.
    pub(super) fn tables(&self, title: &str) -> Vec<Table<'a>> {
        let Some(array) = self.raw.as_array() else {
            return self.wrong_type("an array of tables").unwrap_or_default();
        };
        let items = array.iter().map(|item| Value { span: item.span(), raw: item.get_ref(), ..self.clone() });
        items.filter_map(|item| item.table(title)).collect()
    }
}

/// A table of the file.
pub(super) struct Table<'a> {
    items: BTreeMap<&'a str, (Span, &'a DeValue<'a>, Span)>,
    /// Its header, or all of an inline table.
    pub(super) span: Span,
    title: String,
    pub(super) messages: &'a Messages,
}

impl<'a> Table<'a> {
    pub(super) fn new(items: &'a DeTable<'a>, span: Span, title: impl Into<String>, messages: &'a Messages) -> Self {
        let items = items
            .iter()
            .map(|(key, value)| {
                // A table that only its children name has no place of its own.
                let span = if value.span().is_empty() { key.span() } else { value.span() };
                (key.get_ref().as_ref(), (key.span(), value.get_ref(), span))
            })
            .collect();
        Self { items, span, title: title.into(), messages }
    }

    /// Refuses every key but these.
    pub(super) fn only(&self, keys: &[Key]) {
        self.only_besides(keys, &[]);
    }

    /// Refuses every key but these and `others`, which no help names.
    pub(super) fn only_besides(&self, keys: &[Key], others: &[&str]) {
        let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
        for (name, (span, ..)) in &self.items {
            if names.contains(name) || others.contains(name) {
                continue;
            }
            let takes = format!("{} takes {}", self.title, all_of(&names));
            let help = match nearest(name, &names) {
                Some(near) => format!("write {near}; {takes}"),
                None => format!("remove it; {takes}"),
            };
            self.messages.error(span, format!("unknown key \"{name}\" in {}", self.title), help);
        }
    }

    /// The place of a key.
    pub(super) fn key_span(&self, name: &str) -> Option<&Span> {
        self.items.get(name).map(|(span, ..)| span)
    }

    /// The place of a key's value, or of the table where the key is not given.
    pub(super) fn place_of(&self, key: Key) -> Span {
        self.get(key).map_or_else(|| self.span.clone(), |value| value.span)
    }

    /// A value, where the key is given.
    pub(super) fn get(&self, key: Key) -> Option<Value<'a>> {
        self.items.get(key.name).map(|(_, raw, span)| Value {
            span: span.clone(),
            raw,
            name: key.name.to_owned(),
            help: key.help,
            messages: self.messages,
        })
    }

    /// A value that must be given: a message at the table otherwise.
    pub(super) fn require(&self, key: Key) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            self.messages.error(&self.span, format!("{} has no {}", self.title, key.name), key.help);
        }
        value
    }
}

/// `a, b and c`.
pub(super) fn all_of(names: &[&str]) -> String {
    join(names, "and")
}

/// `"a", "b" or "c"`.
pub(super) fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    join(&quoted.iter().map(String::as_str).collect::<Vec<_>>(), "or")
}

fn join(names: &[&str], word: &str) -> String {
    match names {
        [] => "none".to_owned(),
        [one] => (*one).to_owned(),
        [head @ .., last] => format!("{} {word} {last}", head.join(", ")),
    }
}

/// The name that was probably meant: at most a third of its characters differ.
pub(super) fn nearest<'n>(given: &str, names: &[&'n str]) -> Option<&'n str> {
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&given.to_lowercase(), &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= name.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["cores", "idle", "ram0"];
        assert_eq!(nearest("core", &names), Some("cores"));
        assert_eq!(nearest("Idle", &names), Some("idle"));
        assert_eq!(nearest("ram1", &names), Some("ram0"));
        assert_eq!(nearest("colour", &names), None);
        assert_eq!(nearest("", &names), None);
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(all_of(&["a", "b", "c"]), "a, b and c");
        assert_eq!(one_of(&["a", "b"]), "\"a\" or \"b\"");
        assert_eq!(all_of(&["a"]), "a");
    }
}
