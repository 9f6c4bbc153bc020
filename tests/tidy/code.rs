//! The files of the tree, and Rust code as tokens.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub struct File {
    /// Relative to the root, with slashes.
    pub path: String,
    pub text: String,
}

impl File {
    pub fn new(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Part of the library or the binary, or of the hugepages library.
    pub fn is_source(&self) -> bool {
        self.is_rust() && (self.path.starts_with("src/") || self.path.starts_with("hugepages/src/"))
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All text files of the tree, what a build makes left out.
pub fn tree() -> Vec<File> {
    fn walk(folder: &Path, files: &mut Vec<File>) {
        let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                let made = name == "target" && folder.join("Cargo.toml").exists();
                if !made && !matches!(name.as_str(), ".git" | "__pycache__") {
                    walk(&path, files);
                }
            } else if !name.ends_with(".img")
                && let Ok(text) = fs::read_to_string(&path)
            {
                let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                files.push(File { path, text });
            }
        }
    }
    let mut files = Vec::new();
    walk(root(), &mut files);
    assert!(files.iter().filter(|f| f.is_source()).count() > 50, "the sources were not found");
    files
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub line: usize,
    /// A name, one sign, `::`, or a string with its first quote.
    pub text: String,
}

/// The tokens of Rust code. Comments, numbers and characters are left out.
pub fn tokens(text: &str) -> Vec<Token> {
    let c: Vec<char> = text.chars().collect();
    let at = |i: usize| c.get(i).copied().unwrap_or('\0');
    let name = |ch: char| ch.is_alphanumeric() || ch == '_';
    let (mut found, mut line, mut i) = (Vec::new(), 1, 0);
    while i < c.len() {
        let start = i;
        let token = match (c[i], at(i + 1)) {
            ('/', '/') => {
                while i < c.len() && c[i] != '\n' {
                    i += 1;
                }
                None
            }
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= c.len() {
                        break;
                    }
                }
                None
            }
            ('"', _) => {
                i += 1;
                while i < c.len() && c[i] != '"' {
                    i += if c[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
                Some(c[start..i.min(c.len())].iter().collect())
            }
            ('\'', next) => {
                if next == '\\' || at(i + 2) == '\'' {
                    i += if next == '\\' { 3 } else { 2 };
                    while i < c.len() && c[i] != '\'' {
                        i += 1;
                    }
                }
                i += 1;
                None
            }
            (ch, next) if matches!(ch, 'r' | 'b' | 'c') && is_raw_string(&c[i..]) => {
                i += if next == 'r' { 2 } else { 1 };
                let hashes = c[i..].iter().take_while(|h| **h == '#').count();
                let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                i += hashes + 1;
                while i < c.len() && !c[i..].iter().take(hashes + 1).copied().eq(end.chars()) {
                    i += 1;
                }
                let text: String = c[start..i.min(c.len())].iter().skip_while(|q| **q != '"').collect();
                i += hashes + 1;
                Some(text)
            }
            (ch, _) if name(ch) => {
                while name(at(i)) {
                    i += 1;
                }
                (!ch.is_numeric()).then(|| c[start..i].iter().collect())
            }
            (':', ':') => {
                i += 2;
                Some("::".to_owned())
            }
            (ch, _) => {
                i += 1;
                (!ch.is_whitespace()).then(|| ch.to_string())
            }
        };
        if let Some(text) = token {
            found.push(Token { line, text });
        }
        line += c[start..i.min(c.len())].iter().filter(|ch| **ch == '\n').count();
    }
    found
}

/// `r"`, `r#"`, `br"`, `cr#"` and so on, but not `r#name`.
pub fn is_raw_string(c: &[char]) -> bool {
    let raw = c.iter().take(2).position(|ch| *ch == 'r');
    let Some(raw) = raw.filter(|at| *at == 0 || matches!(c[0], 'b' | 'c')) else { return false };
    c[raw + 1..].iter().find(|ch| **ch != '#') == Some(&'"')
}

/// Splits tokens into those of the product and the modules that are declared for tests only.
pub fn without_tests(all: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    let text = |i: usize| all.get(i).map_or("", |t: &Token| t.text.as_str());
    let (mut kept, mut modules, mut i) = (Vec::new(), Vec::new(), 0);
    while i < all.len() {
        let attribute = text(i) == "#" && text(i + 1) == "[" && text(i + 2) == "cfg";
        let end = (i..all.len()).find(|&at| text(at) == "]").unwrap_or(i);
        if !attribute || !(i..end).any(|at| text(at) == "test") {
            kept.push(all[i].clone());
            i += 1;
            continue;
        }
        // The item ends with its semicolon, or with the brace that closes its first one.
        let mut depth = 0;
        i = end + 1;
        while i < all.len() {
            match text(i) {
                "mod" if depth == 0 && text(i + 2) == ";" => modules.push(text(i + 1).to_owned()),
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            i += 1;
            if depth == 0 && matches!(text(i - 1), ";" | "}") {
                break;
            }
        }
    }
    (kept, modules)
}

/// Where the modules that a file declares are: `src/a/mod.rs` and `src/a.rs` both have them in `src/a/`.
pub fn folder_of(path: &str) -> String {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    match file {
        "mod.rs" | "lib.rs" | "main.rs" => folder.to_owned(),
        _ => format!("{folder}/{}", file.trim_end_matches(".rs")),
    }
}

/// The code that ships: without tests.
pub struct Product {
    pub path: String,
    pub tokens: Vec<Token>,
}

pub fn product(files: &[File]) -> Vec<Product> {
    let mut tests = BTreeSet::new();
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.is_source()) {
        let (tokens, modules) = without_tests(tokens(&file.text));
        tests.extend(modules.into_iter().map(|module| format!("{}/{module}", folder_of(&file.path))));
        found.push(Product { path: file.path.clone(), tokens });
    }
    found.retain(|p| !tests.iter().any(|t| p.path == format!("{t}.rs") || p.path.starts_with(&format!("{t}/"))));
    found
}

/// The lines where the tokens of `what` stand in a row, or a string has it as part of a path.
pub fn mentions(tokens: &[Token], what: &str) -> Vec<usize> {
    let wanted: Vec<String> = self::tokens(what).into_iter().map(|t| t.text).collect();
    let alone = wanted.len() == 1;
    (0..tokens.len())
        .filter(|&i| {
            wanted.iter().enumerate().all(|(n, word)| tokens.get(i + n).is_some_and(|t| t.text == *word))
                || alone && tokens[i].text.starts_with('"') && tokens[i].text.contains(&format!("/{what}"))
        })
        .map(|i| tokens[i].line)
        .collect()
}

/// The product of one small file, for the tests of the rules.
pub fn only(path: &str, text: &str) -> Product {
    let mut found = product(&[File::new(path, text)]);
    found.pop().unwrap()
}

#[test]
fn tokens_are_code_and_nothing_else() {
    let code = "a /* unsafe /* x */ */ r#\"unsafe \" \"# 'u' b'\\'' \"\\\" unsafe\" // unsafe\nfn f<'a>(x: &'a u8) { crate::y }";
    let names: Vec<String> = tokens(code).into_iter().map(|t| t.text).filter(|t| !t.starts_with('"')).collect();
    assert_eq!(names.join(" "), "a b fn f < a > ( x : & a u8 ) { crate :: y }");
    assert_eq!(tokens(code).last().map(|t| t.line), Some(2));
    let (kept, modules) = without_tests(tokens(
        "a; #[cfg(test)] mod tests; #[cfg(all(test, x))] #[y] mod t { b } c; #[cfg(test)] use d; e",
    ));
    assert_eq!(kept.iter().map(|t| t.text.as_str()).collect::<String>(), "a;c;e");
    assert_eq!(modules, ["tests"]);
}
