//! Tables and numbers for people.

use std::fmt;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, ContentArrangement, presets};
use squisher::error::printable;
use squisher::shape::shape_text;

/// Columns under headings, numbers to the right; two spaces between columns, no lines, nothing wrapped or cut.
pub(crate) struct Table(comfy_table::Table);

/// One column: its heading and the side its cells keep to.
pub(crate) enum Column {
    Left(&'static str),
    Right(&'static str),
}

impl Table {
    pub(crate) fn new(columns: &[Column]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|(Column::Left(heading) | Column::Right(heading))| *heading));
        for (styled, column) in table.column_iter_mut().zip(columns) {
            styled.set_padding((0, 2));
            if matches!(column, Column::Right(_)) {
                styled.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self(table)
    }

    /// Tensors with their shapes.
    pub(crate) fn of_tensors(tensors: &[(String, Vec<u64>)]) -> Self {
        let mut table = Self::new(&[Column::Left("TENSOR"), Column::Left("SHAPE")]);
        tensors.iter().for_each(|(name, shape)| table.row([word(name), shape_text(shape)]));
        table
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.trim_fmt())
    }
}

/// A tensor's name in a table: in quotes only where some of it is escaped, or where it would not be one word.
pub(crate) fn word(name: &str) -> String {
    let quoted = printable(name);
    let plain = quoted.len() == name.len() + 2 && !name.is_empty() && !name.contains(char::is_whitespace);
    if plain { name.to_owned() } else { quoted }
}

/// `1,234,567`
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

/// `1 file`, `1,234 files`
pub(crate) fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(number))
}

/// `1.2 GiB`
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Three significant digits, with an exponent where that is shorter; a dash for nothing.
pub(crate) fn value(number: Option<f64>) -> String {
    match number {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(number) => format!("{number:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (u64::MAX, "18,446,744,073,709,551,615")]
        {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn names_are_quoted_where_they_have_to_be() {
        for (name, shown) in
            [("a.weight", "a.weight"), ("", "\"\""), ("a b", "\"a b\""), ("a\u{1b}", "\"a\\u{1b}\"")]
        {
            assert_eq!(word(name), shown);
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(&[Column::Left("NAME"), Column::Right("SIZE")]);
        table.row(["a longer name".to_owned(), "1".to_owned()]);
        table.row(["b".to_owned(), "10,000".to_owned()]);
        assert_eq!(table.to_string(), "NAME             SIZE\na longer name       1\nb              10,000");
    }
}
