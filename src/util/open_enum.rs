//! Enumerations that a peer may extend: a wrapper of the wire integer with named constants.
//!
//! A closed Rust `enum` cannot hold a value a peer may legally (or maliciously) send, so every code point
//! that arrives from outside is an *open* enumeration: all values are representable, the known ones have names.

/// Defines a `#[repr(transparent)]` wrapper of an unsigned integer with named values.
///
/// The type is `Copy`, ordered, usable in zerocopy structs when the integer is `u8`, and its `Debug` shows the name of
/// a known value and the number of an unknown one.
macro_rules! open_enum {
    ( $(#[$outer:meta])* pub enum $name:ident: u8 { $($body:tt)* } ) => {
        $crate::util::open_enum! {
            @define $(#[$outer])* #[derive(zerocopy::Unaligned)] pub enum $name: u8 { $($body)* }
        }
    };
    ( $(#[$outer:meta])* pub enum $name:ident: $int:ident { $($body:tt)* } ) => {
        $crate::util::open_enum! { @define $(#[$outer])* pub enum $name: $int { $($body)* } }
    };
    (
        @define
        $(#[$outer:meta])*
        pub enum $name:ident: $int:ident {
            $( $(#[$inner:meta])* $variant:ident = $value:expr ),* $(,)?
        }
    ) => {
        $(#[$outer])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name(
            /// The value as it stands on the wire.
            pub $int,
        );

        impl $name {
            $( $(#[$inner])* pub const $variant: Self = Self($value); )*

            /// The name of the value, or `None` when it is not one this crate knows.
            pub const fn name(self) -> Option<&'static str> {
                $( if self.0 == Self::$variant.0 { return Some(stringify!($variant)); } )*
                None
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }
    };
}

pub(crate) use open_enum;

#[cfg(test)]
mod tests {
    open_enum! {
        /// Two names, 254 unnamed values.
        pub enum Colour: u8 {
            /// The first.
            RED = 1,
            /// The second.
            BLUE = 7,
        }
    }

    #[test]
    fn known_values_have_names_and_unknown_ones_survive() {
        assert_eq!(format!("{:?}", Colour::RED), "RED");
        assert_eq!(Colour(7).name(), Some("BLUE"));
        assert_eq!(format!("{:?}", Colour(9)), "Colour(0x9)");
        assert_eq!(Colour(9).0, 9);
        assert!(matches!(Colour(7), Colour::BLUE));
    }
}
