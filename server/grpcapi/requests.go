package grpcapi

import (
	"context"
	"crypto/sha256"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/brevet-pki/brevet/pki"
)

// changingRequest is an operator's request for a change. If it has a request ID, the client can repeat it safely.
type changingRequest interface {
	proto.Message
	GetRequestId() []byte
}

// actorOf returns the caller of an RPC in the form in which log entries name it. If the request has an ID, the actor
// contains the ID and a hash of the request's content, by which the store recognizes a repeat.
func actorOf(ctx context.Context, req changingRequest) (pki.Actor, error) {
	actor := callerOf(ctx).Actor()
	if len(req.GetRequestId()) == 0 {
		return actor, nil
	}
	id, err := pki.RequestIDFromBytes(req.GetRequestId())
	if err != nil {
		return actor, pki.Refuse(pki.RuleRequest, "send 16 bytes drawn at random, or leave it out", "request_id is malformed")
	}
	content, err := contentHash(req, "request_id")
	return actor.WithRequest(pki.Request{ID: id, Content: content}), err
}

// contentHash returns the SHA-256 of a request without the named fields. The hash includes the message type, so
// requests of different RPCs have different hashes.
func contentHash(req proto.Message, without ...protoreflect.Name) (hash [sha256.Size]byte, err error) {
	content := proto.Clone(req).ProtoReflect()
	for _, field := range without {
		content.Clear(content.Descriptor().Fields().ByName(field))
	}
	h := sha256.New()
	h.Write([]byte(content.Descriptor().FullName()))
	h.Write([]byte{0})
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(content.Interface())
	h.Write(encoded)
	return [sha256.Size]byte(h.Sum(nil)), err
}
