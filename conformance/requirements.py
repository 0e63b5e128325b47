"""What real clients need of a server, by number; the cases and the reports refer to these."""

from __future__ import annotations

REQUIREMENTS = {
    "R1": "the whole registry at apps and at apps/, without a redirect, with and without v2",
    "R2": "the format follows Accept alone: json in it is JSON, none or anything is XML",
    "R3": "a registration is answered 204 with an empty body",
    "R4": "a heartbeat is answered 200 with an empty body, 404 where nobody is known",
    "R5": "a cancel is answered 200, 404 where nobody is known",
    "R6": "setting a status, removing it and metadata are answered 200",
    "R7": "the body of a PUT or DELETE is never read: none, {}, or a type without a body",
    "R8": "every query parameter of a heartbeat may be missing",
    "R9": "registrations in JSON, with or without a charset, and in XML",
    "R10": "application names in any case, shown in upper case",
    "R11": "ids percent-encoded and with a raw colon",
    "R12": "the id is instanceId, else Amazon's instance-id, else the host name",
    "R13": "ports as objects with numbers or texts, a bare number, or none",
    "R14": "both ports always in the answer, a number with its switch as a text",
    "R15": "timestamps and switches as texts, numbers, null or absent",
    "R16": "the override under both spellings, an empty one meaning none",
    "R17": "a data center in any dress; written with its class, and metadata for Amazon alone",
    "R18": "lease numbers absent or not positive mean 30 and 90; short ones are kept",
    "R19": "application and instance are always arrays; no application without instances",
    "R20": "version and hash code in every list, VIPs included",
    "R21": "the hash code of the full registry, statuses sorted, in every delta",
    "R22": "a delta of the last minutes with ADDED, MODIFIED and DELETED, the deleted in full",
    "R23": "delta, hash code and full answer never contradict each other",
    "R24": "where deltas are switched off: 403 or 404 with nothing in it",
    "R25": "no keys of the server's own in the answers",
    "R26": "status and action words from the protocol's lists alone",
    "R27": "metadata flat, values as texts, names legal in XML",
    "R28": "XML without namespaces, numbers never empty",
    "R29": "id, application, host, address, data center and status always there",
    "R30": "a VIP matches any part of the list; an unknown one is 200 and empty",
    "R31": "one application and one instance under their own roots, 404 for unknown ones",
    "R32": "registering again replaces the data and keeps an override",
    "R33": "a newer dirty timestamp in a heartbeat is a 404, an older or none is a 200",
    "R34": "gzip only where asked for; kept and closed connections",
    "R35": "Basic credentials in the URL are taken",
    "R36": "identity headers and unknown parameters change nothing",
    "R37": "an answer within five seconds; clients go to the next server otherwise",
    "R38": "answers of errors are empty or tiny, on PUT empty",
    "R39": "unknown fields in a registration are no reason to refuse it",
    "R40": "answers in UTF-8 with exactly the format's media type",
}

# What no server can give to all of them.
CONTRADICTIONS = (
    "Steeltoe sends the name Amazon with the class of a plain data center. A genuine server takes "
    "it, then answers 404 for the application and 200 without a body for every delta, for as long "
    "as the delta remembers it. There is no case for it, since asking would do that to the server.",
    "versions__delta is a text for most clients and must be a number for one Go client "
    "(amalgam8/go-eureka-client); the Java, Spring, .NET and fargo clients take both. A text is "
    "required here.",
    "A lease that ends after its own duration and one that ends after twice as long cannot both be "
    "had; clients only need it not to end earlier, and that is what is required.",
    "py-eureka-client fetches everything again whenever a new application shows up in a delta, "
    "whatever the server answers; fargo has no delta at all. Their full fetches are not counted.",
    "eureka-js-client checks no hash code and knows instances by host and port: two instances of "
    "an application on one host and port are one to it.",
)
