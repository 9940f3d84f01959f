package pki

// Actor says who caused a change, as the log records it. It is one of: an identity, which an authenticated
// certificate or token named; whoever holds a key; the system itself, with the part of it; an offline command, with its
// name; or nobody known. Actors compare with ==.
type Actor struct{ text string }

// ActorIdentity is a caller who proved to be the identity.
func ActorIdentity(id SPIFFEID) Actor { return Actor{id.String()} }

// ActorToken is a caller who held a token made for an identity, and nothing else yet.
func ActorToken(id TokenID) Actor { return Actor{"token:" + id.String()} }

// ActorKey is a caller who proved to hold a private key, and nothing else.
func ActorKey(key KeyHash) Actor { return Actor{"key:" + key.String()[:16]} }

// ActorSystem is Brevet itself: the named part acted on its own schedule.
func ActorSystem(part string) Actor { return Actor{"system:" + part} }

// ActorCommand is a person at the CA's own machine who ran an offline command.
func ActorCommand(command string) Actor { return Actor{"command:" + command} }

// unknown stands for nobody known.
const unknown = "unknown"

// ActorFromText restores an Actor from its String, for a store that reads one back.
func ActorFromText(text string) Actor {
	if text == unknown {
		return Actor{}
	}
	return Actor{text}
}

// String formats the actor: a SPIFFE ID, or one of token:…, key:…, system:…, command:…, or "unknown".
func (a Actor) String() string {
	if a.text == "" {
		return unknown
	}
	return a.text
}
