package pki

import "strings"

// Actor says who caused a change, as the log records it. It is one of: an identity, which an authenticated
// certificate or token named; whoever holds a key; the system itself, with the part of it; an offline command, with its
// name; or nobody known. Actors compare with ==.
//
// The actor of a call carries the caller's certificate too. A store authorizes the caller by it in the transaction that
// writes ([Caller.Authorize]). An actor that only names an identity, or nobody, is for the log and authorizes nothing.
type Actor struct {
	text   string
	caller Caller
}

// ActorCaller is a caller who proved to hold the key of a certificate of the identity.
func ActorCaller(id SPIFFEID, certificate CertRef) Actor {
	return Actor{text: id.String(), caller: Caller{id, certificate}}
}

// ActorIdentity names an identity and no certificate of it, as the log does.
func ActorIdentity(id SPIFFEID) Actor { return Actor{text: id.String()} }

// ActorToken is a caller who held a token made for an identity, and nothing else yet.
func ActorToken(id TokenID) Actor { return Actor{text: "token:" + id.String()} }

// ActorKey is a caller who proved to hold a private key, and nothing else.
func ActorKey(key KeyHash) Actor { return Actor{text: "key:" + key.String()[:16]} }

// ActorSystem is Brevet itself: the named part acted on its own schedule.
func ActorSystem(part string) Actor { return Actor{text: "system:" + part} }

// ActorCommand is a person at the CA's own machine who ran an offline command.
func ActorCommand(command string) Actor { return Actor{text: "command:" + command} }

// unknown stands for nobody known.
const unknown = "unknown"

// ActorFromText restores an Actor from its String, for a store that reads one back. It carries no certificate.
func ActorFromText(text string) Actor {
	if text == unknown {
		return Actor{}
	}
	return Actor{text: text}
}

// String formats the actor: a SPIFFE ID, or one of token:…, key:…, system:…, command:…, or "unknown".
func (a Actor) String() string {
	if a.text == "" {
		return unknown
	}
	return a.text
}

// Caller returns the caller with its certificate; zero for an actor that carries none.
func (a Actor) Caller() Caller { return a.caller }

// NeedsAuthorization reports whether a store has to authorize what the actor causes. The system's own parts and offline
// commands hold the CA's keys anyway; a token and a signature are checked where they are evidence.
func (a Actor) NeedsAuthorization() bool {
	kind, _, ok := strings.Cut(a.text, ":")
	return !ok || kind != "system" && kind != "command" && kind != "token" && kind != "key"
}

// Named returns the actor as a store reads it back from the log: without a certificate.
func (a Actor) Named() Actor { return Actor{text: a.text} }
