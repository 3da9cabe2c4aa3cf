"""
Events as they are stored: name, version and bytes, and the way back.

Law: a codec writes and reads, and knows classes; it keeps no event, opens no file and
decides nothing about what cannot be read. Importing this room imports neither cattrs
nor a JSON library: a codec does, when it is made.

=====================  ==============================================================
`Codec`, `Encoded`     what a store knows of a codec
`JSONCodec`            the one that ships
`PayloadCodec`         a codec around a codec: compression, encryption
`upcast`               marks what brings older events up to date
=====================  ==============================================================
"""

from __future__ import annotations

from eventbus.codec._json import JSONCodec
from eventbus.codec._port import Codec, Encoded, PayloadCodec
from eventbus.codec._upcast import upcast

__all__ = ["Codec", "Encoded", "JSONCodec", "PayloadCodec", "upcast"]
