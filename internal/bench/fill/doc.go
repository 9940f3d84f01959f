// Package fill fills the stores of servers that are measured. It writes everything that issuing and revoking write, with
// keys and signatures of its own, and in larger transactions.
package fill
