"""Lines meant to break a JSON reader: written by hand, for Patient, each with a name.

Wherever a line can carry text it carries `SECRET`, which no reason and no path may repeat.
"""

from __future__ import annotations

HEAD = b'{"resourceType":"Patient",'


def patient(body: bytes) -> bytes:
    return HEAD + body + b"}"


PLAIN = patient(b'"id":"SECRET","name":[{"family":"SECRET","given":["SECRET"]}]')


def _spots(name: str, token: bytes) -> dict[str, bytes]:
    """One JSON token, where a reader of columns, one of verbatim text and one of unknown members meet it."""
    return {
        f"{name} in a text element": patient(b'"id":"SECRET","gender":' + token),
        f"{name} in an array": patient(b'"name":[{"given":["SECRET",' + token + b"]}]"),
        f"{name} in a contained resource": patient(b'"contained":[{"x":' + token + b',"y":"SECRET"}]'),
        f"{name} in an unknown member": patient(b'"unknown":[' + token + b',"SECRET"]'),
        f"{name} three extensions deep": patient(
            b'"extension":[{"url":"a","extension":[{"url":"b","extension":[{"url":' + token + b"}]}]}]"
        ),
    }


def _numbers(name: str, token: bytes) -> dict[str, bytes]:
    return {
        f"{name} as a decimal": patient(b'"extension":[{"url":"SECRET","valueDecimal":' + token + b"}]"),
        f"{name} as an integer": patient(b'"id":"SECRET","multipleBirthInteger":' + token),
        f"{name} in a contained resource": patient(b'"contained":[{"x":' + token + b',"y":"SECRET"}]'),
        f"{name} in an unknown member": patient(b'"unknown":{"SECRET":' + token + b"}"),
    }


BAD_UTF8 = {
    "an overlong slash": b"\xc0\xaf",
    "an overlong slash of three bytes": b"\xe0\x80\xaf",
    "an overlong slash of four bytes": b"\xf0\x80\x80\xaf",
    "an overlong NUL": b"\xc0\x80",
    "a lone continuation byte": b"\x80",
    "a two-byte sequence cut short": b"\xc3",
    "a three-byte sequence cut short": b"\xe2\x82",
    "a four-byte sequence cut short": b"\xf0\x9f\x98",
    "one continuation byte too many": b"\xc3\xa9\xa9",
    "a high surrogate in UTF-8": b"\xed\xa0\x80",
    "a low surrogate in UTF-8": b"\xed\xbf\xbf",
    "a pair of surrogates in UTF-8": b"\xed\xa0\xbd\xed\xb8\x80",
    "a code point beyond Unicode": b"\xf4\x90\x80\x80",
    "a sequence of five bytes": b"\xf8\x88\x80\x80\x80",
    "the byte FF": b"\xff",
    "the byte FE": b"\xfe",
    "Latin-1": b"Zo\xeb",
}

BAD_SURROGATES = {
    "a high surrogate alone": b"\\ud800",
    "a low surrogate alone": b"\\udfff",
    "surrogates in the wrong order": b"\\ude00\\ud83d",
    "two high surrogates": b"\\ud83d\\ud83d",
    "a high surrogate and a letter": b"\\uD83Dx",
    "a high surrogate and an escaped letter": b"\\ud83d\\u0041",
    "a high surrogate and an escaped newline": b"\\ud83d\\n",
    "a pair and a low one": b"\\ud83d\\ude00\\ude00",
}

BAD_ESCAPES = {
    "a hexadecimal escape": b"\\x41",
    "a unicode escape with a wrong digit": b"\\u12G4",
    "a unicode escape of two digits": b"\\u12",
    "a unicode escape of no digits": b"\\u",
    "a unicode escape with a sign": b"\\u+123",
    "a unicode escape with 0x": b"\\u0x12",
    "a unicode escape with a space": b"\\u 123",
    "an escape with a capital U": b"\\U0001F600",
    "an escaped apostrophe": b"\\'",
    "an escaped letter": b"\\a",
    "an escaped digit": b"\\0",
    "an escaped tabulator": b"\\\t",
}

BAD_NUMBERS = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "minus Infinity": b"-Infinity",
    "a leading zero": b"01",
    "a leading zero behind minus": b"-01",
    "two zeros": b"00",
    "a number that ends with its point": b"1.",
    "a number that begins with its point": b".5",
    "a minus and a point": b"-.5",
    "a number with a plus": b"+1",
    "a hexadecimal number": b"0x10",
    "an exponent without digits": b"1e",
    "an exponent of a sign": b"1e+",
    "an exponent behind a point": b"1.e5",
    "an exponent with a point": b"1e2.5",
    "a minus alone": b"-",
    "two minuses": b"--1",
    "underscores": b"1_000",
    "two points": b"1.2.3",
    "an unit": b"1f",
    "Arabic digits": "\u0661".encode(),
    "full width digits": "\uff11".encode(),
}

BAD_WORDS = {
    "a word": b"SECRET",
    "None": b"None",
    "True": b"True",
    "a short true": b"tru",
    "a long true": b"truee",
    "a short null": b"nul",
    "undefined": b"undefined",
    "an apostrophe string": b"'SECRET'",
    "nothing": b"",
    "a comment": b"/* SECRET */ 1",
    "a line comment": b"1 // SECRET",
    "an open string": b'"SECRET',
    "an open string behind an escape": b'"SECRET\\"',
    "a trailing comma in an array": b'["SECRET",]',
    "a trailing comma in an object": b'{"SECRET":1,}',
    "a leading comma": b"[,1]",
    "two commas": b"[1,,2]",
    "no comma": b'["a" "b"]',
    "no comma between members": b'{"a":1 "b":2}',
    "no colon": b'{"a" 1}',
    "two colons": b'{"a"::1}',
    "a key without value": b'{"a"}',
    "a key without quotes": b'{a:"SECRET"}',
    "a number as key": b'{1:"SECRET"}',
    "null as key": b'{null:"SECRET"}',
    "a bracket that a brace ends": b"[1}",
    "a brace that a bracket ends": b'{"a":1]',
    "an open array": b'["SECRET"',
    "an open object": b'{"a":"SECRET"',
    "a bracket too many": b"[]]",
    "a brace too many": b"{}}",
    "a colon in an array": b"[1:2]",
    "a vertical tab as space": b"\x0b1",
    "a form feed as space": b"\x0c1",
    "a no-break space": b"\xc2\xa01",
    "a line separator": b"\xe2\x80\xa81",
    "a byte order mark": b"\xef\xbb\xbf1",
    "a NUL byte": b"\x001",
    "a backslash outside a string": b"\\n1",
}

DUPLICATES = {
    "id twice": patient(b'"id":"SECRET","id":"SECRET"'),
    "id twice, one escaped": patient(b'"id":"a","\\u0069d":"SECRET"'),
    "id twice, both escaped": patient(b'"i\\u0064":"a","\\u0069d":"SECRET"'),
    "resourceType twice": patient(b'"id":"SECRET","resourceType":"Patient"'),
    "resourceType twice, other": patient(b'"id":"SECRET","resourceType":"Observation"'),
    "null twice": patient(b'"gender":null,"gender":null'),
    "a value and null": patient(b'"gender":"SECRET","gender":null'),
    "a list twice": patient(b'"name":[{"text":"SECRET"}],"name":[]'),
    "nested": patient(b'"name":[{"family":"a","given":["b"],"family":"SECRET"}]'),
    "a primitive extension": patient(b'"_birthDate":{"id":"a"},"_birthDate":{"id":"SECRET"}'),
    "in a primitive extension": patient(b'"_birthDate":{"id":"a","id":"SECRET"}'),
    "in an extension": patient(b'"extension":[{"url":"SECRET","url":"a"}]'),
    "three extensions deep": patient(
        b'"extension":[{"extension":[{"extension":[{"url":"a","url":"SECRET"}]}]}]'
    ),
    "in a contained resource": patient(b'"contained":[{"resourceType":"X","id":"a","id":"SECRET"}]'),
    "deep in a contained resource": patient(b'"contained":[{"x":[[{"y":{"a":1,"b":2,"a":"SECRET"}}]]}]'),
    "contained twice": patient(b'"contained":[],"contained":[{"id":"SECRET"}]'),
    "in an unknown member": patient(b'"unknown":{"a":1,"a":"SECRET"}'),
    "deep in an unknown member": patient(b'"unknown":[{"x":{"":1,"":"SECRET"}}]'),
    "an unknown member twice": patient(b'"unknown":1,"unknown":"SECRET"'),
    "an unknown member twice, apart": patient(b'"unknown":1,"id":"a","active":true,"unknown":"SECRET"'),
    "an unknown member twice, nested": patient(b'"name":[{"SECRET":1,"text":"a","SECRET":1}]'),
    "an empty name": patient(b'"":1,"":"SECRET"'),
    "a letter and its escape": patient('"é":1,"\\u00e9":"SECRET"'.encode()),
    "a face and its escape": patient('"😀":1,"\\uD83D\\ude00":"SECRET"'.encode()),
    "a slash and its escape": patient(b'"a/b":1,"a\\/b":"SECRET"'),
    "the last of many": patient(
        b'"unknown":{' + b"".join(b'"k%d":%d,' % (n, n) for n in range(300)) + b'"k7":"SECRET"}'
    ),
    "in a reference in a reference": patient(
        b'"managingOrganization":{"identifier":{"assigner":{"display":"a","display":"SECRET"}}}'
    ),
}

BAD_JSON: dict[str, bytes] = {
    "a truncated line": PLAIN[:-5],
    "a line cut in a key": PLAIN[:20],
    "a line cut behind the first brace": b"{",
    "a line cut behind a backslash": patient(b'"id":"SECRET')[:-1] + b"\\",
    "two objects": PLAIN + PLAIN,
    "two objects and a space": PLAIN + b" " + PLAIN,
    "two objects and a comma": PLAIN + b"," + PLAIN,
    "text behind the object": PLAIN + b"SECRET",
    "a comma behind the object": PLAIN + b",",
    "a brace behind the object": PLAIN + b"}",
    "a bracket behind the object": PLAIN + b"]",
    "a NUL behind the object": PLAIN + b"\0",
    "null behind the object": PLAIN + b" null",
    "text before the object": b"SECRET" + PLAIN,
    "a comma before the object": b"," + PLAIN,
    "a byte order mark in the middle of a file": b"\xef\xbb\xbf" + PLAIN,
    "a comma instead of a line end": PLAIN + b"\r" + PLAIN,
    "a vertical tab behind the object": PLAIN + b"\x0b",
    "only a vertical tab": b"\x0b",
    "only a form feed": b" \x0c",
    "only a NUL": b"\0",
    "only a no-break space": b"\xc2\xa0",
    "only a byte order mark": b"\xef\xbb\xbf",
    "a trailing comma": patient(b'"id":"SECRET",'),
    "a leading comma": b'{,"resourceType":"Patient"}',
    "a member without quotes": b"{resourceType:'SECRET'}",
    "a control character in a key": patient(b'"i\x01d":"SECRET"'),
    "bad UTF-8 outside of strings": patient(b'"id":"SECRET"\xff'),
    "bad UTF-8 in a known key": patient(b'"i\xffd":"SECRET"'),
    "bad UTF-8 in an unknown key": patient(b'"unknown":{"\xed\xa0\x80":"SECRET"}'),
    "a surrogate in a key": patient(b'"\\ud800":"SECRET"'),
    "a surrogate in a key of an unknown member": patient(b'"unknown":{"\\udc00":"SECRET"}'),
    "a bad escape in a key": patient(b'"\\x41":"SECRET"'),
    "no value": b"{}x",
    "Markdown": b"# SECRET",
    "HTML": b"<html><body>SECRET</body></html>",
    "XML": b'<Patient xmlns="http://hl7.org/fhir"/>',
    "CSV": b"id,SECRET",
}
for _name, _token in BAD_UTF8.items():
    BAD_JSON |= _spots(_name, b'"SECRET' + _token + b'"')
for _name, _token in BAD_SURROGATES.items():
    BAD_JSON |= _spots(_name, b'"SECRET' + _token + b'"')
for _name, _token in BAD_ESCAPES.items():
    BAD_JSON |= _spots(_name, b'"SECRET' + _token + b'"')
for _code in set(range(0x20)) - {0x0A}:
    BAD_JSON |= _spots(f"the control character {_code:02X}", b'"SECRET%c"' % _code)
for _name, _token in BAD_WORDS.items():
    BAD_JSON |= _spots(_name, _token)
for _name, _token in BAD_NUMBERS.items():
    BAD_JSON |= _numbers(_name, _token)


MISFITS: dict[str, tuple[bytes, str]] = {
    "a null line": (b"null", ""),
    "an array line": (b"[" + PLAIN + b"]", ""),
    "an empty array": (b"[]", ""),
    "a number": (b"17", ""),
    "a string": (b'"SECRET"', ""),
    "true": (b"true", ""),
    "an empty object": (b"{}", "resourceType"),
    "no resourceType": (b'{"id":"SECRET"}', "resourceType"),
    "resourceType null": (b'{"resourceType":null,"id":"SECRET"}', "resourceType"),
    "resourceType a number": (b'{"resourceType":5,"id":"SECRET"}', "resourceType"),
    "resourceType an array": (b'{"resourceType":["Patient"]}', "resourceType"),
    "resourceType an object": (b'{"resourceType":{"Patient":1}}', "resourceType"),
    "resourceType empty": (b'{"resourceType":""}', "resourceType"),
    "resourceType in small letters": (b'{"resourceType":"patient"}', "resourceType"),
    "resourceType longer": (b'{"resourceType":"Patients"}', "resourceType"),
    "resourceType shorter": (b'{"resourceType":"Patien"}', "resourceType"),
    "resourceType with a space": (b'{"resourceType":"Patient "}', "resourceType"),
    "resourceType unknown": (b'{"resourceType":"SECRET"}', "resourceType"),
    "resourceType only inside": (b'{"contained":[{"resourceType":"Patient"}]}', "resourceType"),
    "resourceType in other letters": (b'{"resourcetype":"Patient"}', "resourceType"),
    "another resource type": (b'{"resourceType":"Observation","id":"SECRET"}', "resourceType"),
    "an abstract resource type": (b'{"resourceType":"DomainResource"}', "resourceType"),
    "int32 and one": (patient(b'"multipleBirthInteger":2147483648'), "multipleBirthInteger"),
    "int32 less one": (patient(b'"multipleBirthInteger":-2147483649'), "multipleBirthInteger"),
    "2 to the 32": (patient(b'"multipleBirthInteger":4294967296'), "multipleBirthInteger"),
    "2 to the 64": (patient(b'"multipleBirthInteger":18446744073709551617'), "multipleBirthInteger"),
    "a thousand digits": (patient(b'"multipleBirthInteger":' + b"1" * 1000), "multipleBirthInteger"),
    "an integer with a point": (patient(b'"multipleBirthInteger":1.0'), "multipleBirthInteger"),
    "an integer with an exponent": (patient(b'"multipleBirthInteger":1e0'), "multipleBirthInteger"),
    "an integer with a large exponent": (patient(b'"multipleBirthInteger":1E99'), "multipleBirthInteger"),
    "an integer as a string": (patient(b'"multipleBirthInteger":"1"'), "multipleBirthInteger"),
    "an integer in an array": (patient(b'"multipleBirthInteger":[1]'), "multipleBirthInteger"),
    "true for an integer": (patient(b'"multipleBirthInteger":true'), "multipleBirthInteger"),
    "a number for a text": (patient(b'"birthDate":2020'), "birthDate"),
    "a decimal for a text": (patient(b'"gender":-1.5e3'), "gender"),
    "true for a text": (patient(b'"id":true'), "id"),
    "an array for a text": (patient(b'"id":["SECRET"]'), "id"),
    "an object for a text": (patient(b'"gender":{"SECRET":1}'), "gender"),
    "an empty array for a text": (patient(b'"gender":[]'), "gender"),
    "an empty object for a text": (patient(b'"gender":{}'), "gender"),
    "a string for a boolean": (patient(b'"active":"true"'), "active"),
    "a number for a boolean": (patient(b'"active":1'), "active"),
    "an array for a boolean": (patient(b'"active":[true]'), "active"),
    "a string for a decimal": (
        patient(b'"extension":[{"valueDecimal":"1.10"}]'),
        "extension[0].valueDecimal",
    ),
    "true for a decimal": (patient(b'"extension":[{},{"valueDecimal":true}]'), "extension[1].valueDecimal"),
    "an object for a list": (patient(b'"name":{"family":"SECRET"}'), "name"),
    "a string for a list": (patient(b'"name":"SECRET"'), "name"),
    "null in a list of objects": (patient(b'"name":[{"family":"SECRET"},null]'), "name[1]"),
    "a string in a list of objects": (patient(b'"name":["SECRET"]'), "name[0]"),
    "an array in a list of objects": (patient(b'"name":[{},{},[]]'), "name[2]"),
    "a list for an object": (patient(b'"maritalStatus":[{"text":"SECRET"}]'), "maritalStatus"),
    "a string for an object": (patient(b'"maritalStatus":"SECRET"'), "maritalStatus"),
    "a number for an object": (patient(b'"meta":0'), "meta"),
    "a string for a list of strings": (patient(b'"name":[{"given":"SECRET"}]'), "name[0].given"),
    "a number in a list of strings": (patient(b'"name":[{},{"given":["SECRET",5]}]'), "name[1].given[1]"),
    "a list in a list of strings": (patient(b'"name":[{"given":[["SECRET"]]}]'), "name[0].given[0]"),
    "an object in a list of strings": (patient(b'"name":[{"given":[null,{}]}]'), "name[0].given[1]"),
    "a wrong type deep inside": (
        patient(b'"contact":[{},{"name":{"period":{"start":20}}}]'),
        "contact[1].name.period.start",
    ),
    "a wrong type behind unknown members": (
        patient(b'"SECRET":[{"a":[1]}],"contact":[{"SECRET":{},"gender":7}]'),
        "contact[0].gender",
    ),
    "a wrong type in the tenth item": (
        patient(b'"link":[' + b'{"type":"a"},' * 10 + b'{"type":1}]'),
        "link[10].type",
    ),
    "an object for extensions": (patient(b'"extension":{"url":"SECRET"}'), "extension"),
    "null for an extension": (patient(b'"extension":[null]'), "extension[0]"),
    "a number for a url": (patient(b'"extension":[{"url":5}]'), "extension[0].url"),
    "a wrong type two extensions deep": (
        patient(b'"extension":[{"url":"a","extension":[{"valueInteger":1.5}]}]'),
        "extension[0].extension[0].valueInteger",
    ),
    "a string for a primitive extension": (patient(b'"_birthDate":"SECRET"'), "_birthDate"),
    "a list for a primitive extension": (patient(b'"_birthDate":[{"id":"SECRET"}]'), "_birthDate"),
    "an object for repeated primitive extensions": (patient(b'"name":[{"_given":{}}]'), "name[0]._given"),
    "a number in repeated primitive extensions": (
        patient(b'"name":[{"_given":[null,5]}]'),
        "name[0]._given[1]",
    ),
    "a wrong type in a primitive extension": (
        patient(b'"_birthDate":{"extension":[{"url":["SECRET"]}]}'),
        "_birthDate.extension[0].url",
    ),
}
"""Name -> (line, JSON path of what does not fit): JSON, but no Patient."""


GOOD: dict[str, bytes] = {
    "plain": PLAIN,
    "nothing but the type": b'{"resourceType":"Patient"}',
    "the type last": b'{"id":"a","name":[{"given":["b"]}],"resourceType":"Patient"}',
    "the type in the middle": b'{"contained":[{"resourceType":"X"}],"resourceType":"Patient","id":"a"}',
    "the type escaped": b'{"resourceT\\u0079pe":"\\u0050atient","\\u0069d":"a"}',
    "spaces everywhere": b' \t{ "resourceType" : "Patient" ,\r"id"\t:  "a" ,'
    b' "name" : [ { "given" : [ "x" , null ] } ] } \r\t',
    "empty lists": patient(b'"name":[],"link":[ ],"contained":[],"extension":[]'),
    "empty objects": patient(
        b'"meta":{},"maritalStatus":{ },"name":[{},{}],"extension":[{}],"_birthDate":{}'
    ),
    "empty inside empty": patient(
        b'"name":[{"given":[],"_given":[],"period":{}}],"meta":{"tag":[{}],"profile":[]}'
    ),
    "nulls in lists of primitives": patient(
        b'"name":[{"given":[null],"_given":[null]},{"given":[null,"a",null]}]'
    ),
    "lists of unequal length": patient(b'"name":[{"given":["a"],"_given":[null,{"id":"b"},null]}]'),
    "null members": patient(
        b'"id":null,"name":null,"meta":{"profile":null},"_birthDate":null,"unknown":null'
    ),
    "both of a choice": patient(b'"deceasedBoolean":false,"deceasedDateTime":"2020"'),
    "int32 bounds": patient(b'"multipleBirthInteger":2147483647,"unknown":9999999999'),
    "int32 lower bound": patient(b'"multipleBirthInteger":-2147483648'),
    "an integer minus zero": patient(b'"multipleBirthInteger":-0'),
    "text of odd characters": patient('"id":"\x7f\u0080\ufffe\uffff\U0010ffff\u2028\u2029\ufeff"'.encode()),
    "every short escape": patient(b'"id":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f"'),
    "a face by its escapes": patient(b'"id":"\\ud83d\\uDE00\\uDBFF\\uDFFF"'),
    "escapes at the ends": patient(b'"id":"\\\\","gender":"\\"","language":"a\\\\"'),
    "hostile names": patient(b'"":1,"~":2,"/":3,"a/b":{"~1":[1.10]},"name":[{"":{"x":null},"~0":-0}]'),
    "names of ours": patient(
        b'"_unmapped":{"/id":"b"},"_source_line":7,"_source_file":"x","_export_id":"y","export_id":"z",'
        b'"__birthDate_start":"2020","birthDate":"2020-02","extension":[{"__valueDecimal_numeric":1,"valueDecimal":2}]'
    ),
    "unknown primitive extensions": patient(
        b'"_name":[{"id":"a"}],"_meta":{},"_birthDate":{"_id":{"id":"b"}}'
    ),
    "unknown members with every value": patient(b'"u":[null,true,false,0,-0.0,1E400,"",[],{},[[]],{"":{}}]'),
    "three extensions": patient(
        b'"extension":[{"url":"a","extension":[{"extension" : [ {"url":"c", "valueDecimal":1.10} ] }]}]'
    ),
    "anything three extensions deep": patient(
        b'"extension":[{"extension":[{"extension": {"a" : [1.0, "x"]} }]}]'
    ),
    "an empty third extension": patient(b'"extension":[{"extension":[{"extension":[ ]}]}]'),
    "contained as anything": patient(b'"contained":{"resourceType" : "Nonsense"}'),
    "dates that are none": patient(b'"birthDate":"2020-02-30","deceasedDateTime":"soon"'),
    "a long number": patient(b'"extension":[{"valueDecimal":0.' + b"3" * 3000 + b"}]"),
    "deep brackets": patient(b'"unknown":' + b"[" * 300 + b"]" * 300),
    "deep objects": patient(b'"contained":[' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"]"),
    "many members": patient(b",".join(b'"m%d":%d' % (n, n) for n in range(400))),
    "many items": patient(b'"name":[' + b",".join(b'{"given":["%d"]}' % n for n in range(400)) + b"]"),
    "a choice of every kind": patient(
        b'"extension":[{"valueBoolean":true},{"valueInteger":1},{"valueDecimal":1.0},{"valueString":""},'
        b'{"valueQuantity":{"value":1E2}},{"valuePeriod":{"start":"2020"}},{"valueInstant":"2020-01-01T00:00:00Z"}]'
    ),
}
"""Lines that look bad, or that FHIR forbids, and that must arrive whole."""
