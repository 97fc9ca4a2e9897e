//! Whole numbers as people read them.
//!
//! Owns: where their digits are set apart. Does not own: units and rounding, which differ between texts and the page.

/// A whole number with `separator` between its thousands: `1 234 567`.
pub fn grouped(number: u64, separator: char) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(separator);
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([7, 999, 1234].map(|number| grouped(number, ' ')), ["7", "999", "1 234"]);
        assert_eq!(grouped(u64::MAX, ','), "18,446,744,073,709,551,615");
    }
}
