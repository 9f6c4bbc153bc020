//! Tables for people.

use unicode_width::UnicodeWidthStr;

/// Rows of cells as lines, each column as wide as its widest cell, two blanks between them.
pub fn lay_out<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].width()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line += cell;
            line.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The cell of something that is not known, or of nobody.
pub fn dash() -> String {
    "-".to_owned()
}

/// What is there, or a dash.
pub fn or_dash(list: Vec<String>) -> String {
    if list.is_empty() { dash() } else { list.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let cells = |row: [&str; 2]| row.map(str::to_owned);
        assert_eq!(
            lay_out(&[cells(["A", "B"]), cells(["é日本", ""]), cells(["", "x"])]),
            "A      B\né日本\n       x\n"
        );
        assert_eq!(lay_out::<2>(&[]), "");
        assert_eq!((or_dash(Vec::new()).as_str(), or_dash(vec!["a".into(), "b".into()]).as_str()), ("-", "a, b"));
    }
}
