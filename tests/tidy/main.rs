//! The rules of the tree as tests: who may use whom, where `unsafe`, time, chance and locks may stand, what no file may hold.
//!
//! Each rule is a function from a file to complaints, `file:line: what: remedy`. One test applies it to the tree, another
//! shows it something wrong. Code is read as tokens, so that comments and strings count only where they should.

mod code;
mod house;
mod rules;

use std::collections::BTreeSet;
use std::fs;

use code::{File, mentions, product, root, tokens, tree};
use house::{CRATES, HOUSE, back_edges, edges};
use rules::*;

fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn on_all(rule: impl Fn(&File) -> Vec<String>) {
    assert_none(tree().iter().flat_map(rule).collect());
}

#[test]
fn uses_follow_the_house_and_nothing_leads_back() {
    for (n, (row, targets)) in HOUSE.iter().enumerate() {
        for target in targets.iter().filter(|target| !CRATES.contains(target)) {
            assert!(HOUSE[..n].iter().any(|(above, _)| above == target), "{row} names {target}, which is not above it");
        }
    }
    let products = product(&tree());
    assert_none(back_edges(&products));
    let used = edges(&products);
    let idle = |(row, targets): &(&'static str, &'static [&str])| {
        let unused = targets.iter().filter(|target| !used.contains_key(&(*row, (**target).to_owned())));
        unused
            .map(|target| format!("tests/tidy/house.rs: `{row}` does without `{target}` now: take it off"))
            .collect::<Vec<_>>()
    };
    assert_none(HOUSE.iter().flat_map(idle).collect());
}

#[test]
fn no_file_is_too_long() {
    for file in tree().iter().filter(|f| f.is_rust() && f.text.lines().count() > LINES_AIM) {
        println!("note: {}: {} lines, more than the {LINES_AIM} to aim at", file.path, file.text.lines().count());
    }
    on_all(too_long);
}

#[test]
fn unsafe_code_is_a_closed_list() {
    on_all(unsafe_elsewhere);
    let safe = |path: &&&str| {
        !fs::read_to_string(root().join(path)).is_ok_and(|t| !mentions(&tokens(&t), "unsafe").is_empty())
    };
    let idle = UNSAFE.iter().filter(safe).map(|path| format!("{path}:1: has no unsafe code: take it off the list"));
    assert_none(idle.collect());
}

#[test]
fn time_and_chance_have_one_door_each() {
    let products = product(&tree());
    assert_none(products.iter().flat_map(chance).collect());
    assert_none(unneeded(&products, &CHANCE_ALLOWED));
}

#[test]
fn nothing_on_a_reactor_blocks() {
    let products = product(&tree());
    assert_none(products.iter().flat_map(blocking).collect());
    assert_none(unneeded(&products, &BLOCKING_ALLOWED));
}

#[test]
fn nothing_is_unfinished() {
    on_all(unfinished);
}

#[test]
fn every_expectation_has_its_reason() {
    on_all(expect_without_reason);
}

#[test]
fn no_registry_is_named() {
    on_all(registry_names);
}

#[test]
fn links_lead_somewhere() {
    on_all(|file| broken_links(file, |path| root().join(path).exists()));
}

#[test]
fn every_module_is_documented() {
    let files = tree();
    let products: BTreeSet<String> = product(&files).into_iter().map(|p| p.path).collect();
    let rule = |file: &File| undocumented_module(file, file.is_source() && !products.contains(&file.path));
    assert_none(files.iter().flat_map(rule).collect());
}

#[test]
fn the_architecture_names_what_is_there() {
    let files = tree();
    let names = files.iter().filter(|f| f.is_rust()).flat_map(|f| tokens(&f.text)).map(|t| t.text).collect();
    let paths: Vec<String> = files.iter().map(|f| f.path.clone()).collect();
    let document = files.iter().find(|f| f.path == "docs/architecture.md").expect("docs/architecture.md is missing");
    assert_none(unknown_names(document, &names, &paths));
}
