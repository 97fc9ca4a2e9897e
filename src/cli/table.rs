//! Columns that line up.

/// What may follow a number in a column of numbers.
const UNITS: [&str; 7] = [" ns", " us", " ms", " s", " min", " h", " d"];

/// Joins rows into lines, each column as wide as its widest cell; numbers (and "-") to the right, words to the
/// left. The first row is the heading.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let column = |index: usize| rows.iter().filter_map(move |row| row.get(index));
    let widths: Vec<usize> =
        (0..count).map(|index| column(index).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    let numeric: Vec<bool> =
        (0..count).map(|index| rows.len() > 1 && column(index).skip(1).all(|cell| is_number(cell))).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            let width = widths[index];
            let cell = if numeric[index] { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            line.push_str(&cell);
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn is_number(cell: &str) -> bool {
    let cell = UNITS.iter().find_map(|unit| cell.strip_suffix(unit)).unwrap_or(cell);
    cell == "-"
        || cell.starts_with(|first: char| first.is_ascii_digit() || first == '+' || first == '-')
            && cell.chars().all(|character| !character.is_alphabetic() && character != ':')
}

/// A whole number with thousands set apart: `1 234 567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_left_and_numbers_right() {
        let rows =
            [["name", "count"], ["a", "1"], ["longer", "1 234"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "name    count\na           1\nlonger  1 234\n");
        let rows = [["p50"], ["6.1 us"], ["12 ms"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "   p50\n6.1 us\n 12 ms\n");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1234), "1 234");
        assert_eq!(grouped(1_234_567), "1 234 567");
    }
}
