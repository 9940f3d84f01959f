package authz

import "context"

// authorizedEach is the number of messages that the server sends on a stream before it authorizes the caller again.
const authorizedEach = 100

// Stream checks the caller of a stream repeatedly while the stream is open.
//
// If the client sends one message and receives many, Stream authorizes the caller when that message arrives, and again
// after every authorizedEach messages that the server sends. Recheck authorizes it while the server sends nothing.
//
// If the client sends many messages, Stream authorizes the caller at the first of them. It authenticates the caller at
// each of the others, so that a revocation of its certificate ends the stream. Before a message takes effect, the
// caller, the state of its identity and its roles are checked again.
type Stream struct {
	authorizer *Authorizer
	operation  Operation
	client     *Client
	sendsMany  bool // whether the client sends many messages
	begun      bool // whether the first message has arrived; only one goroutine uses it
	sent       int  // messages that the server has sent, if not sendsMany; only one goroutine uses it
}

// NewStream returns a Stream for a client that sends one message, or many.
func (a *Authorizer) NewStream(op Operation, client *Client, sendsMany bool) *Stream {
	return &Stream{authorizer: a, operation: op, client: client, sendsMany: sendsMany}
}

// Received checks the caller. It is called after a message from the client has arrived.
func (s *Stream) Received(ctx context.Context) error {
	if s.sendsMany && s.begun {
		_, err := s.authorizer.Authenticate(s.operation, s.client)
		return err
	}
	s.begun = true
	_, err := s.authorizer.Authorize(ctx, s.operation, s.client)
	return err
}

// Recheck authorizes the caller again. It may run concurrently with the other methods.
func (s *Stream) Recheck(ctx context.Context) error {
	_, err := s.authorizer.Authorize(ctx, s.operation, s.client)
	return err
}

// Sent counts a message that the server sends, and authorizes the caller again after every authorizedEach messages. If
// the client sends many messages, Sent does nothing.
func (s *Stream) Sent(ctx context.Context) error {
	if s.sendsMany {
		return nil
	}
	if s.sent++; s.sent%authorizedEach != 0 {
		return nil
	}
	_, err := s.authorizer.Authorize(ctx, s.operation, s.client)
	return err
}
