/* Section: Ping-pong
 * Property: an echo that equals the throw comes from a thread that saw this very throw, and a ponger
 *     that has answered leaves when the games are over
 * Left out: time: a pinger, and a ponger that has not answered yet, may lose patience at any moment
 * MUTANT_SAME_NUMBERS: each game begins with the same number
 * MUTANT_LEAVE_ODD: a pinger that loses patience leaves its throw in the ball
 */

#define GAMES 2
#define THROWS 2
#define PONGERS 2

byte ball, echo;
byte game, echo_of; /* the game that an echo answers */
byte num_left;

/* Whoever is idle: a ponger may be off its CPU for a whole game. */
proctype pinger() {
    byte throw, i;
    bool is_playing;
    for (game : 1 .. GAMES) {
#ifdef MUTANT_SAME_NUMBERS
        throw = 1;
#else
        throw = (ball | 1) + 2;
#endif
        is_playing = true;
        i = 0;
        do
        :: i < THROWS ->
           ball = throw;
           if
           :: atomic { echo == throw -> assert(echo_of == game) }; throw = throw + 2; i++
           :: is_playing = false; break
           fi
        :: else -> throw = throw - 2; break
        od;
#ifdef MUTANT_LEAVE_ODD
        if :: is_playing -> ball = throw + 1 :: else fi
#else
        ball = throw + 1
#endif
    }
}

proctype ponger() {
    byte seen, seen_in, answered;
    do
    :: atomic { ball % 2 == 1 && ball != answered -> seen = ball; seen_in = game };
       atomic { echo = seen; echo_of = seen_in };
       answered = seen
    :: ball % 2 == 0 && answered != 0 -> break
    :: answered == 0 -> break
    od;
    num_left++
}

init {
    byte i;
    atomic { run pinger(); for (i : 1 .. PONGERS) { run ponger() } }
    timeout;
    assert(num_left == PONGERS)
}
