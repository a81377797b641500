//! A QR code of a URL in half blocks: two rows of modules a line.

use qrcode::{Color, EcLevel, QrCode};

/// Light modules around the code. The standard wants four; readers are content with two.
const QUIET: usize = 2;

/// The lines of a code, or `None` where it does not fit.
#[must_use]
pub fn draw(text: &str, columns: usize, rows: usize, colour: bool) -> Option<Vec<String>> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let width = code.width();
    let side = width + 2 * QUIET;
    if side > columns || side.div_ceil(2) > rows {
        return None;
    }
    let colors = code.into_colors();
    // Outside of the code all is light.
    let dark = |x: usize, y: usize| {
        let inside = x.checked_sub(QUIET).zip(y.checked_sub(QUIET)).filter(|(x, y)| *x < width && *y < width);
        inside.and_then(|(x, y)| colors.get(y * width + x)) == Some(&Color::Dark)
    };
    let line = |y: usize| {
        // Light is drawn, so that on the usual dark terminal it comes out right without colours as well. With colours
        // it is black on white on any terminal.
        let cells = (0..side).map(|x| match (dark(x, y), dark(x, y + 1)) {
            (false, false) => '█',
            (false, true) => '▀',
            (true, false) => '▄',
            (true, true) => ' ',
        });
        let cells: String = cells.collect();
        if colour { format!("\x1b[38;5;231;48;5;16m{cells}\x1b[0m") } else { cells }
    };
    Some((0..side).step_by(2).map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_does_not_fit_is_not_drawn() {
        let url = "https://mytok.eu/c/AbCdEfGh";
        let lines = draw(url, 80, 24, false).unwrap();
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()));
        let side = lines[0].chars().count();
        assert!(draw(url, side, lines.len(), false).is_some());
        assert!(draw(url, side - 1, lines.len(), false).is_none());
        assert!(draw(url, side, lines.len() - 1, false).is_none());
    }
}
