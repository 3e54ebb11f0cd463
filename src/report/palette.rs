//! The colours of everything that is compared: contours, fills and curves.
//!
//! The first two, blue and orange, stay apart for every kind of colour blindness. They come from the palette of Okabe and Ito
//! ("Color universal design", 2008), which has a bright and a dark tone of each.

/// A colour in two tones, red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour {
    /// For a dark background; scans are one.
    pub bright: [u8; 3],
    /// For a light background.
    pub dark: [u8; 3],
    /// The custom property that holds the tone which suits the page.
    pub property: &'static str,
}

/// The reference mask; a chart's first curve.
pub const REFERENCE: Colour = Colour { bright: [0x56, 0xb4, 0xe9], dark: [0x00, 0x72, 0xb2], property: "--reference" };

/// The predicted mask; a chart's second curve.
pub const PREDICTION: Colour =
    Colour { bright: [0xe6, 0x9f, 0x00], dark: [0xd5, 0x5e, 0x00], property: "--prediction" };

const fn colour(bright: [u8; 3], dark: [u8; 3], property: &'static str) -> Colour {
    Colour { bright, dark, property }
}

/// A chart's curves, in this order.
pub const CURVES: [Colour; 6] = [
    REFERENCE,
    PREDICTION,
    colour([0x2c, 0xc4, 0x9a], [0x00, 0x7f, 0x5c], "--curve-3"),
    colour([0xe0, 0x96, 0xbe], [0xa6, 0x4c, 0x80], "--curve-4"),
    colour([0xf0, 0xe4, 0x42], [0x7d, 0x73, 0x00], "--curve-5"),
    colour([0xc4, 0xca, 0xd2], [0x4a, 0x52, 0x5c], "--curve-6"),
];

impl Colour {
    /// The colour in a style sheet: the page's tone, or the dark one where no page says.
    pub fn css(&self) -> String {
        format!("var({}, {})", self.property, hexadecimal(self.dark))
    }
}

/// `#0072b2`.
pub fn hexadecimal([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}
